"""Quantisation of activations to 8 or 4 bits, group by group, with stochastic rounding."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from deepseek_hpf.dtypes import FORMATS, format_of
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.storage.noise import GROUP, NOISE_LEVELS, offset, table

Tensor = Any
Packed = tuple[Tensor, Tensor, Tensor]

BITS = (4, 8)
SPECIALS = (float("nan"), float("inf"), float("-inf"))


@dataclass(frozen=True)
class GroupQuantiser:
    """Keeps a tensor as a code for each value, and a lower bound and a step for each 256 values.

    Code 0 is zero, exactly: what is sparse stays so, and a ReLU's gradient stays where it was.
    Codes from 1 are `low + (code - 1) * step` from the smallest to the largest value of the group;
    where the smallest is zero, `low` is the smallest positive number. A value is rounded to one of
    its two neighbours, up with the probability that makes its mean exact:

        E[restore(compress(x))] = x        |restore(compress(x)) - x| <= step

    In a group that holds infinities or NaN, which have a negative step, these take the last three
    codes, so that they come back exactly.

    Args:
        bits: 8 or 4.
        seed: Of the rounding. The same tensor is rounded in the same way by the same seed.

    Raises:
        ConfigError: There are no such bits.

    Example:
        >>> import numpy as np
        >>> from deepseek_hpf.storage.group_quantiser import GroupQuantiser
        >>> quantiser = GroupQuantiser(8)
        >>> x = np.array([[0.0, 1.0, 1.5], [2.0, np.inf, 0.0]], "float32")
        >>> restored = quantiser.restore(quantiser.compress(x), x.shape, "float32")
        >>> np.abs(np.array(restored) - x)[np.isfinite(x)].max() <= (2 - 1) / 250
        np.True_

    References:
        - [ActNN](https://arxiv.org/abs/2104.14129), [GACT](https://arxiv.org/abs/2206.11357)
    """

    bits: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ConfigError(f"Activations are kept in 4 or 8 bits. Received: bits={self.bits!r}")

    @property
    def levels(self) -> int:
        """Codes for values other than zero."""
        return 2**self.bits - 1

    def compress(self, x: Tensor) -> Packed:
        """Packs a tensor.

        Args:
            x: Floating-point values of any shape.

        Returns:
            Codes (uint8, two of 4 bits in a byte), lower bounds and steps, both halved so that the
            range of a group, which may exceed the largest number, does not overflow.
        """
        x = ops.convert_to_tensor(x)
        half = 0.5 * _grouped(x)
        finite = ops.isfinite(half)
        ordinary = ops.logical_and(finite, half != 0)
        most = 0.5 * format_of(ops.dtype(half)).max
        least = smallest(ops.dtype(x))
        low = ops.min(ops.where(finite, half, most), axis=1, keepdims=True, initial=most)
        high = ops.max(ops.where(finite, half, -most), axis=1, keepdims=True, initial=-most)
        low = ops.where(low == 0, least, ops.where(low > high, 0.0, low))
        high = _larger(low, ops.where(high == 0, -least, high))
        special = ops.logical_not(ops.all(finite, axis=1, keepdims=True))
        steps = ops.cast(ops.where(special, self.levels - 4, self.levels - 1), half.dtype)
        step = _larger(high / steps - low / steps, least)
        place = (ops.where(ordinary, half, low) - low) / step
        code = ops.clip(ops.floor(place + self._noise(low, high)), 0.0, steps) + 1.0
        code = ops.where(ordinary, code, self._special_codes(half))
        codes = ops.cast(ops.cast(code, "int32"), "uint8")
        return self._joined(codes), low, ops.where(special, -step, step)

    def restore(self, packed: Packed, shape: Any, dtype: str) -> Tensor:
        """Unpacks what `compress` has returned.

        Args:
            packed: Codes, lower bounds, steps.
            shape: Of the tensor.
            dtype: Of the tensor.

        Returns:
            The values.
        """
        codes, low, step = packed
        code = ops.cast(ops.cast(self._parted(codes), "int32"), low.dtype)
        most = 0.5 * format_of(dtype).max
        half = ops.clip(low + (code - 1.0) * ops.abs(step), -most, most)
        values = ops.where(code == 0, ops.zeros_like(half), 2.0 * half)
        for rank, value in enumerate(SPECIALS):
            found = ops.logical_and(step < 0, code == self.levels - rank)
            values = ops.where(found, ops.cast(value, values.dtype), values)
        flat = ops.reshape(values, [-1])[: _size(shape)]
        return ops.cast(ops.reshape(flat, shape), dtype)

    def kept_bytes(self, size: int, dtype: str) -> int:
        """The bytes that a tensor takes when it is packed.

        Args:
            size: Values in the tensor.
            dtype: Of the tensor.

        Returns:
            Bytes.
        """
        bounds = 2 * (8 if dtype == "float64" else 4)
        return -(-size // GROUP) * (GROUP * self.bits // 8 + bounds)

    def _special_codes(self, half: Tensor) -> Tensor:
        code = ops.where(half > 0, self.levels - 1, self.levels - 2)  # of the infinities
        code = ops.where(ops.isnan(half), self.levels, code)
        return ops.cast(ops.where(half == 0, 0, code), half.dtype)

    def _noise(self, low: Tensor, high: Tensor) -> Tensor:
        """Numbers from 0 to 1, both excluded."""
        low_bits, high_bits = (ops.view(ops.cast(b, "float32"), "int32") for b in (low, high))
        index = ops.expand_dims(ops.arange(ops.shape(low)[0], dtype="int32"), 1)
        by_group = offset(low_bits, high_bits, index, self.seed, _shift)
        number = ops.bitwise_and(by_group + _table(self.seed), NOISE_LEVELS - 1)
        return (ops.cast(number, low.dtype) + 0.5) / NOISE_LEVELS

    def _joined(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes
        return codes[:, : GROUP // 2] + 16 * codes[:, GROUP // 2 :]

    def _parted(self, codes: Tensor) -> Tensor:
        if self.bits == 8:
            return codes
        return ops.concatenate([ops.bitwise_and(codes, 15), ops.right_shift(codes, 4)], axis=1)


def smallest(dtype: str) -> float:
    """A positive number that is not flushed to zero, neither in this format nor in float32.

    Args:
        dtype: E.g. `"float16"`.

    Returns:
        A normal number of float32.
    """
    return max(format_of(dtype).smallest_subnormal, FORMATS["float32"].smallest_normal)


def _grouped(x: Tensor) -> Tensor:
    """Rows of `GROUP` values, filled up by zeros, in float32 or float64."""
    wide = x if ops.dtype(x) == "float64" else ops.cast(x, "float32")
    flat = ops.reshape(wide, [-1])
    filling = -_size(ops.shape(x)) % GROUP
    if not (isinstance(filling, int) and filling == 0):
        flat = ops.concatenate([flat, ops.zeros([filling], flat.dtype)])
    return ops.reshape(flat, [-1, GROUP])


def _larger(a: Tensor, b: Any) -> Tensor:
    # Under PyTorch Keras's `maximum` makes float32 of float64.
    return ops.where(a < b, b, a)


def _size(shape: Any) -> Any:
    """A number where all sizes are known when the step is traced, a scalar tensor otherwise."""
    return functools.reduce(lambda product, size: product * size, shape, 1)


def _shift(value: Tensor, bits: int) -> Tensor:
    return ops.bitwise_and(ops.right_shift(value, bits), (1 << (32 - bits)) - 1)


@functools.lru_cache(maxsize=64)
def _table(seed: int) -> np.ndarray:
    return table(seed)[None, :]
