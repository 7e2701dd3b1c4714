"""Rounding of float32 masters to the weights that the model holds, in integer arithmetic.

A bfloat16 number is the upper half of a float32 number. Of the float32 bits `b`

    image = (b + 0x8000) >> 16            the nearest bfloat16 number
    low   = b, its lower 16 bits, signed  what the image leaves out

so that `b = (image << 16) + low`: nothing is lost between the two. Halfway between two bfloat16
numbers, where one weight in 65,536 lies, the image is the one of larger magnitude. A cast would
take the even one, and then the even image would have 65,537 masters, one more than 16 bits can
tell apart. All forms of masters round alike, so that they train alike, bit by bit.

Integers also keep what floating-point units flush, the subnormal numbers, and no compiler leaves
out the rounding of an integer.
"""

import importlib
from typing import Any

import keras
from keras import ops

Tensor = Any

HALF = 0x8000
MAGNITUDE = 0x7FFF
BFLOAT16_INFINITY = 0x7F80
QUIET_NAN = 0x7FC00000
FLOAT16_MAX = 65504.0
FLOAT16_INFINITY_FROM = 65520.0


def bits_of(x: Tensor) -> Tensor:
    """Returns the bits of a float32 tensor as int32; every NaN becomes the same quiet one.

    The rounding of other NaNs could carry over into the sign, and make zeros of them.
    """
    x = ops.convert_to_tensor(x)
    return ops.where(ops.isnan(x), ops.cast(QUIET_NAN, "int32"), ops.view(x, "int32"))


def rounded(master: Tensor, dtype: str) -> Tensor:
    """Returns the image of a float32 master in `dtype`, float16 or bfloat16."""
    if dtype != "bfloat16":
        return ops.cast(ops.convert_to_tensor(master), dtype)
    native = _native()
    if native:
        return native.rounded(ops.convert_to_tensor(master))
    return _image(bits_of(master))


def parted(master: Tensor) -> tuple[Tensor, Tensor]:
    """Parts a float32 master.

    Args:
        master: float32 tensor.

    Returns:
        Its image, bfloat16, and what the image leaves out, int16.
    """
    native = _native()
    if native:
        return native.parted(ops.convert_to_tensor(master))
    bits = bits_of(master)
    return _image(bits), ops.cast(bits, "int16")


def joined(image: Tensor, low: Tensor) -> Tensor:
    """Joins what `parted` returned.

    Args:
        image: bfloat16 tensor. If it was assigned since, the result rounds to what was assigned.
        low: int16 tensor.

    Returns:
        The float32 master.
    """
    native = _native()
    if native:
        return native.joined(ops.convert_to_tensor(image), ops.convert_to_tensor(low))
    upper = ops.cast(ops.view(ops.convert_to_tensor(image), "int16"), "int32")
    lower = ops.cast(ops.convert_to_tensor(low), "int32")
    magnitude = ops.bitwise_and(upper, MAGNITUDE)
    # No master has these: they would be NaN. The image was assigned, and stands for itself.
    below_zero = ops.logical_and(ops.equal(magnitude, 0), ops.less(lower, 0))
    beyond_infinity = ops.logical_and(
        ops.greater_equal(magnitude, BFLOAT16_INFINITY), ops.greater(lower, 0)
    )
    lower = ops.where(ops.logical_or(below_zero, beyond_infinity), ops.zeros_like(lower), lower)
    return ops.view(ops.add(ops.left_shift(upper, 16), lower), "float32")


def stochastically_rounded(x: Tensor, dtype: str, noise: Tensor) -> Tensor:
    """Rounds up or down, with the probabilities that make the mean exact.

    Numbers of `dtype` stay as they are. What is finite becomes infinite only where the nearest
    number would.

    Args:
        x: float32 tensor.
        dtype: `"float16"` or `"bfloat16"`.
        noise: int32 tensor of the same shape, uniform from 0 to 65,535.

    Returns:
        The rounded tensor. For bfloat16 its mean is exact; for float16 within 2^-13 of the spacing
        of the numbers around `x`, and exact where `x` is a normal number of float16.
    """
    x = ops.convert_to_tensor(x)
    return _to_bfloat16(x, noise) if dtype == "bfloat16" else _to_float16(x, noise)


def _image(bits: Tensor) -> Tensor:
    upper = ops.right_shift(ops.add(bits, HALF), 16)
    return ops.view(ops.cast(upper, "int16"), "bfloat16")


def _to_bfloat16(x: Tensor, noise: Tensor) -> Tensor:
    bits = bits_of(x)
    # Infinity and NaN have no lower bits; the largest finite numbers must not be carried there.
    upper = ops.right_shift(ops.add(bits, noise), 16)
    nearest = ops.right_shift(ops.add(bits, HALF), 16)
    overflowed = ops.greater_equal(ops.bitwise_and(upper, MAGNITUDE), BFLOAT16_INFINITY)
    upper = ops.where(overflowed, nearest, upper)
    return ops.view(ops.cast(upper, "int16"), "bfloat16")


def _to_float16(x: Tensor, noise: Tensor) -> Tensor:
    exponent = ops.bitwise_and(ops.view(x, "int32"), 0x7F800000)
    # 2^-10 of the power of two below x, at least the smallest subnormal number.
    spacing = ops.maximum(ops.multiply(ops.view(exponent, "float32"), 2.0**-10), 2.0**-24)
    # 11 bits before the point and 13 behind it: the sum is exact.
    fraction = ops.multiply(ops.cast(ops.right_shift(noise, 3), "float32"), 2.0**-13)
    steps = ops.floor(ops.add(ops.divide(x, spacing), fraction))
    value = ops.multiply(steps, spacing)
    magnitude = ops.abs(x)
    capped = ops.clip(value, -FLOAT16_MAX, FLOAT16_MAX)
    value = ops.where(ops.less(magnitude, FLOAT16_INFINITY_FROM), capped, x)
    return ops.cast(value, "float16")


def _native() -> Any:
    """The same for PyTorch, which fuses nothing; None on the other back ends."""
    if keras.backend.backend() != "torch":
        return None
    return importlib.import_module("deepseek_hpf.optimizers.masters.rounding_torch")
