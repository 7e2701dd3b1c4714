"""The group quantiser for TensorFlow, in a form of which XLA makes a few fast loops on a CPU.

It makes the codes that `GroupQuantiser` makes, up to the last bit of a quotient, in half the time:
it multiplies by the inverse of the step, rounds by adding 2^23, which leaves an integer in the last
bits of a float32, and looks for values that are not finite in the bounds, not in each value.
"""

import math
from typing import Any

import tensorflow as tf

from deepseek_hpf.dtypes import format_of
from deepseek_hpf.storage.group_quantiser import GroupQuantiser, Packed, smallest
from deepseek_hpf.storage.noise import GROUP, NOISE_LEVELS, offset, table

_ROUNDS = 2.0**23  # beyond it a float32 has no digits behind the point


def compress(bits: int, seed: int, x: tf.Tensor) -> Packed:
    """Packs values. To be compiled by XLA.

    Args:
        bits: 8 or 4.
        seed: Of the rounding.
        x: One dimension.

    Returns:
        As `GroupQuantiser.compress`: codes, lower bounds, steps.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.storage.group_quantiser_tensorflow import compress, restore
        >>> packed = compress(8, 0, tf.constant([0.0, 1.0, 1.5, float("inf")]))
        >>> restore(8, tf.float32, *packed)[:4].numpy().round(1).tolist()
        [0.0, 1.0, 1.5, inf]
    """
    if x.dtype == tf.float64:
        return GroupQuantiser(bits, seed).compress(x)
    levels = 2**bits - 1
    rows = tf.reshape(tf.pad(x, [[0, -tf.size(x) % GROUP]]), [-1, GROUP])
    half = 0.5 * tf.cast(rows, tf.float32)
    low, high, special = _bounds(half, smallest(x.dtype.name))
    steps = tf.where(special, levels - 4.0, levels - 1.0)
    step = tf.maximum((high - low) / steps, smallest(x.dtype.name))
    # From one half on: the code, whose first is 1, plus the noise less one half, then rounded.
    place = (half - low) * (1.0 / step) + (_noise(low, high, seed) + 0.5)
    rounded = tf.clip_by_value(place, 1.0, steps + 1.0) + _ROUNDS
    code = tf.bitcast(rounded, tf.int32) & 0xFF
    code = tf.where(tf.abs(half) <= _most(), code, _special_codes(half, levels))
    codes = tf.cast(tf.where(half == 0.0, 0, code), tf.uint8)
    if bits == 4:
        codes = codes[:, : GROUP // 2] + 16 * codes[:, GROUP // 2 :]
    return codes, low, tf.where(special, -step, step)


def restore(bits: int, dtype: tf.DType, *packed: tf.Tensor) -> tf.Tensor:
    """Unpacks what `compress` has returned. To be compiled by XLA.

    Args:
        bits: 8 or 4.
        dtype: Of the values.
        packed: Codes, lower bounds, steps.

    Returns:
        The values, and at the end some that fill the last group. One dimension.
    """
    size = GROUP * tf.shape(packed[0])[0]
    return GroupQuantiser(bits).restore(packed, [size], dtype.name)


def _bounds(half: tf.Tensor, least: float) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The values of the first and the last code of each group, and whether it has special ones."""
    finite = tf.abs(half) <= _most()
    low = tf.reduce_min(half, 1, keepdims=True)
    # XLA's maximum on a CPU passes over NaN.
    high = tf.reduce_max(tf.where(finite, half, math.inf), 1, keepdims=True)
    special = high > _most()

    def of_finite() -> Any:
        low = tf.reduce_min(tf.where(finite, half, _most()), 1, keepdims=True)
        high = tf.reduce_max(tf.where(finite, half, -_most()), 1, keepdims=True)
        return low, high

    low, high = tf.cond(tf.reduce_any(special), of_finite, lambda: (low, high))
    low = tf.where(low == 0.0, least, tf.where(low > high, 0.0, low))
    return low, tf.maximum(low, tf.where(high == 0.0, -least, high)), special


def _most() -> float:
    """Half the largest number."""
    return 0.5 * format_of("float32").max


def _special_codes(half: tf.Tensor, levels: int) -> tf.Tensor:
    code = tf.where(half > 0.0, levels - 1, levels - 2)
    return tf.where(tf.math.is_nan(half), levels, code)


def _noise(low: tf.Tensor, high: tf.Tensor, seed: int) -> tf.Tensor:
    """The numbers of `GroupQuantiser`, from 0 to 1."""
    index = tf.range(tf.shape(low)[0])[:, None]
    low_bits, high_bits = (tf.bitcast(bound, tf.int32) for bound in (low, high))
    by_group = offset(low_bits, high_bits, index, seed, _shift)
    number = (by_group + table(seed)[None]) & (NOISE_LEVELS - 1)
    return (tf.cast(number, tf.float32) + 0.5) / NOISE_LEVELS


def _shift(value: tf.Tensor, bits: int) -> tf.Tensor:
    return tf.bitwise.right_shift(value, bits) & ((1 << (32 - bits)) - 1)
