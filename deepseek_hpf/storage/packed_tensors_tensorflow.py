"""Forms in which a tensor of a TensorFlow graph waits for the backward pass."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from deepseek_hpf.storage.group_quantiser_tensorflow import compress, restore
from deepseek_hpf.storage.noise import GROUP

BITS = {"int8": 8, "int4": 4}


class Form(Protocol):
    """How a tensor is kept."""

    def restore(self, after: tf.Tensor) -> tf.Tensor:
        """Makes the tensor again, once another one is there."""


@dataclass(frozen=True)
class Whole:
    """As it is.

    Args:
        tensor: The tensor.
    """

    tensor: tf.Tensor

    def restore(self, after: tf.Tensor) -> tf.Tensor:
        """Returns the tensor."""
        return self.tensor


@dataclass(frozen=True)
class Packed:
    """In fewer bytes.

    Args:
        parts: What is kept.
        shape: Of the tensor; a tensor where it is not known when the step is traced.
        unpack: Makes of the parts the values, one after the other, and some more at the end.
    """

    parts: tuple[tf.Tensor, ...]
    shape: Any
    unpack: Callable[..., tf.Tensor]

    def kept_bytes(self, values: int) -> int:
        """Bytes in memory; the shapes of the parts are not always known when a step is traced.

        Args:
            values: Their number in the tensor.

        Returns:
            Bytes.
        """
        if len(self.parts) == 1:
            return -(-values // 8)
        codes, low, step = self.parts
        return -(-values // GROUP) * (codes.shape[1] + low.dtype.size + step.dtype.size)

    def restore(self, after: tf.Tensor) -> tf.Tensor:
        """Makes the tensor again.

        Args:
            after: What the backward pass has come to. TensorFlow's runtime computes whatever has
                its inputs, so that without it the tensor would be there at once, and stay.

        Returns:
            The tensor.
        """
        # XLA knows no control dependencies: there the unpacking has to use a value.
        few = tf.reshape(after, [-1])[:1]
        with tf.control_dependencies([after]):
            flat = self.unpack(few, *self.parts)
            return tf.reshape(flat[: tf.reduce_prod(self.shape)], self.shape)


def pack_values(x: tf.Tensor, storage: str, seed: int) -> Packed:
    """Quantises a tensor.

    Args:
        x: Floating-point values.
        storage: `"int8"` or `"int4"`.
        seed: Of the rounding.

    Returns:
        The form.
    """
    bits = BITS[storage]
    parts = compiled(compress, bits, seed)(tf.reshape(x, [-1]))
    if x.shape.is_fully_defined():
        for part in parts:  # a function for several sizes does not tell
            part.set_shape([-(-x.shape.num_elements() // GROUP), None])
    return Packed(parts, shape_of(x), compiled(_restore, bits, x.dtype))


def pack_mask(mask: tf.Tensor, dtype: tf.DType) -> Packed:
    """Keeps a bit for each value.

    Args:
        mask: Booleans.
        dtype: What to restore: zeros and ones of this dtype.

    Returns:
        The form.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.storage.packed_tensors_tensorflow import pack_mask
        >>> packed = pack_mask(tf.constant([True, False, True]), tf.float32)
        >>> packed.restore(tf.constant(0.0)).numpy().tolist(), packed.parts[0].shape[0]
        ([1.0, 0.0, 1.0], 1)
    """
    return _with_numbers(tf.cast(mask, tf.uint8), 1, dtype)


def pack_numbers(numbers: tf.Tensor, bits: int) -> Packed:
    """Keeps small numbers.

    Args:
        numbers: uint8, less than `2 ** bits`.
        bits: 1, 2, 4 or 8.

    Returns:
        The form.
    """
    return _with_numbers(numbers, bits, tf.uint8)


def _with_numbers(numbers: tf.Tensor, bits: int, dtype: tf.DType) -> Packed:
    packed = compiled(_joined, bits)(tf.reshape(numbers, [-1]))
    if numbers.shape.is_fully_defined():
        packed.set_shape([-(-numbers.shape.num_elements() * bits // 8)])
    return Packed((packed,), shape_of(numbers), compiled(_parted, bits, dtype))


def pack_codes(codes: tf.Tensor, bits: int) -> tf.Tensor:
    """Puts small numbers into bytes.

    Args:
        codes: uint8, one dimension.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, one dimension, as long as it has to be.
    """
    each = 8 // bits
    padded = tf.pad(codes, [[0, -tf.size(codes) % each]])
    rows = tf.reshape(padded, [each, -1])
    packed = rows[0]
    for place in range(1, each):
        packed |= tf.bitwise.left_shift(rows[place], tf.constant(bits * place, tf.uint8))
    return packed


def unpack_codes(packed: tf.Tensor, bits: int) -> tf.Tensor:
    """What `pack_codes` was given, and some zeros.

    Args:
        packed: What it has returned.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, one dimension.
    """
    places = tf.range(0, 8, bits, tf.int32)[:, None]
    shifted = tf.bitwise.right_shift(packed[None], tf.cast(places, tf.uint8))
    return tf.reshape(tf.bitwise.bitwise_and(shifted, tf.constant(2**bits - 1, tf.uint8)), [-1])


def shape_of(x: tf.Tensor) -> Any:
    """The shape, as numbers where they are known."""
    return x.shape.as_list() if x.shape.is_fully_defined() else tf.shape(x)


def unpacked_after(few: tf.Tensor, *parts: tf.Tensor) -> list[tf.Tensor]:
    """The parts, which XLA does not know to be the same as before.

    It would otherwise fuse packing and unpacking into one loop, and keep its input.
    """
    kept: list[tf.Tensor] = xla.optimization_barrier(few, *parts)[1:]
    return kept


def _restore(bits: int, dtype: tf.DType, few: tf.Tensor, *parts: tf.Tensor) -> tf.Tensor:
    return restore(bits, dtype, *unpacked_after(few, *parts))


def _joined(bits: int, numbers: tf.Tensor) -> tf.Tensor:
    return pack_codes(numbers, bits)


def _parted(bits: int, dtype: tf.DType, few: tf.Tensor, packed: tf.Tensor) -> tf.Tensor:
    (kept,) = unpacked_after(few, packed)
    return tf.cast(unpack_codes(kept, bits), dtype)


@functools.lru_cache(maxsize=256)
def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Of some first arguments, a function that XLA makes one or two loops of."""
    return tf.function(
        functools.partial(function, *arguments),
        jit_compile=True,
        autograph=False,
        reduce_retracing=True,
    )
