"""Optimizer slots in 8 bits a value: a code, and the largest magnitude of each block.

A moment of Adam's spreads over many powers of ten within one tensor, and has to be right in its
order of magnitude more than in its last digit. So codes are not spread evenly, but as fourth
powers: with L codes, code c of a block whose largest magnitude is a stands for

    a (c / L)^4

where each power of ten has fewer codes than the next larger one, as in the dynamic map of
bitsandbytes, and the smallest magnitude that is not zero is a / L^4 (4e-9 a with sign, 2e-10 a
without). Rounded to the nearest code, a value x = a t^4 is off by at most

    a max((t + 1 / 2L)^4 - t^4, 1 / L^4)

References:
    - [8-bit Optimizers via Block-wise Quantization](https://arxiv.org/abs/2110.02861)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any


class Packed(NamedTuple):
    """A packed tensor.

    Attributes:
        codes: int8 or uint8, a row for each block.
        largest: float32, the largest magnitude of each block.
    """

    codes: Tensor
    largest: Tensor


@dataclass(frozen=True)
class BlockCode:
    """Packs tensors in blocks.

    Args:
        block_size: Values in a block.
        signed: Whether values may be negative. Without sign there are twice as many codes, and what
            is positive stays positive: a second moment that became zero would make a huge step of a
            small one.

    Example:
        >>> import numpy as np
        >>> from deepseek_hpf.optimizers.block_code import BlockCode
        >>> code = BlockCode(block_size=256, signed=True)
        >>> x = np.float32([[1.0, -0.5], [1e-3, 0.0]])
        >>> restored = np.array(code.restore(code.pack(x), (2, 2)))
        >>> bool((abs(restored - x) <= 0.02 * abs(x) + 4e-4).all())
        True
    """

    block_size: int
    signed: bool

    @property
    def dtype(self) -> str:
        """Dtype of the codes."""
        return "int8" if self.signed else "uint8"

    @property
    def codes(self) -> int:
        """The largest code, L."""
        return 127 if self.signed else 255

    def blocks(self, size: int) -> int:
        """Returns how many blocks so many values fill."""
        return -(-size // self.block_size)

    def pack(self, x: Tensor) -> Packed:
        """Packs a tensor.

        Args:
            x: float32 tensor, finite; not negative if the code has no sign. A NaN makes its block
                NaN.

        Returns:
            Codes and largest magnitudes.
        """
        rows = self._rows(ops.convert_to_tensor(x))
        magnitudes = ops.abs(rows)
        largest = ops.max(magnitudes, axis=1, keepdims=True)
        divisor = ops.where(ops.equal(largest, 0.0), ops.ones_like(largest), largest)
        root = ops.sqrt(ops.sqrt(ops.divide(magnitudes, divisor)))
        code = ops.floor(ops.add(ops.multiply(root, float(self.codes)), 0.5))
        if self.signed:
            code = ops.where(ops.less(rows, 0.0), ops.negative(code), code)
        else:
            least = ops.cast(ops.greater(magnitudes, 0.0), code.dtype)
            code = ops.maximum(code, least)
        return Packed(ops.cast(code, self.dtype), ops.reshape(largest, (-1,)))

    def restore(self, packed: Packed, shape: Sequence[int]) -> Tensor:
        """Unpacks what `pack` returned.

        Args:
            packed: Codes and largest magnitudes.
            shape: Of the tensor.

        Returns:
            float32 tensor.
        """
        code = ops.cast(packed.codes, "float32")
        square = ops.square(ops.divide(code, float(self.codes)))
        magnitudes = ops.multiply(ops.square(square), ops.expand_dims(packed.largest, 1))
        if self.signed:
            magnitudes = ops.where(ops.less(code, 0.0), ops.negative(magnitudes), magnitudes)
        return ops.reshape(ops.reshape(magnitudes, (-1,))[: math.prod(shape)], shape)

    def _rows(self, x: Tensor) -> Tensor:
        size = math.prod(x.shape)
        filling = self.blocks(size) * self.block_size - size
        flat = ops.reshape(x, (-1,))
        if filling:
            flat = ops.pad(flat, (0, filling))
        return ops.reshape(flat, (-1, self.block_size))


class PackedVariable:
    """Two variables of an optimizer that hold a packed tensor, zero at first.

    Args:
        code: How it is packed.
        shape: Of the tensor.
        add_variable: The optimizer's `add_variable`.
        name: Name.
    """

    def __init__(
        self,
        code: BlockCode,
        shape: Sequence[int],
        add_variable: Callable[..., keras.Variable],
        name: str,
    ):
        self.code, self.shape = code, tuple(shape)
        blocks = code.blocks(math.prod(self.shape))
        self.codes = add_variable(
            shape=(blocks, code.block_size), dtype=code.dtype, name=f"{name}_codes"
        )
        self.largest = add_variable(shape=(blocks,), dtype="float32", name=f"{name}_largest")

    def read(self) -> Tensor:
        """Returns the tensor, float32."""
        packed = Packed(*map(ops.convert_to_tensor, (self.codes, self.largest)))
        return self.code.restore(packed, self.shape)

    def write(self, value: Tensor, assign: Callable[[keras.Variable, Tensor], None]) -> None:
        """Packs a tensor.

        Args:
            value: float32 tensor.
            assign: The optimizer's `assign`.
        """
        packed = self.code.pack(value)
        assign(self.codes, packed.codes)
        assign(self.largest, packed.largest)
