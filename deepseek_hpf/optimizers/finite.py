"""Are the gradients finite, and how large is their norm: one pass over them answers both.

The sum of squares is not finite if a gradient is not, so the pass that makes the norm also checks.
The reverse does not hold: squares of finite float32 numbers overflow from 1.8e19 on. Only then a
second pass over the gradients times a small power of two, whose squares cannot overflow, decides.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import keras
from keras import ops

Tensor = Any

FLOAT32_MAX = (2 - 2**-23) * 2.0**127
# The largest finite number times this, squared, summed over 1e18 elements is finite, while what
# made the first sum overflow stays far from underflow. Powers of two round nothing.
DOWNSCALE = {"float32": 2.0**-96, "float64": 2.0**-600}


class Statistics(NamedTuple):
    """What one pass over the gradients tells.

    Attributes:
        finite: Boolean scalar: no gradient holds an inf or a NaN.
        norm: float32 scalar: the L2 norm of all gradients together, at most float32's largest
            number if they are finite, else the inf or NaN that was found.
    """

    finite: Tensor
    norm: Tensor


def gradient_statistics(gradients: Sequence[Tensor], divisor: Tensor = 1.0) -> Statistics:
    """Checks gradients and measures their norm.

    Args:
        gradients: Dense tensors of any float dtype. Squares are summed in float32 (in float64 for
            float64), so that float16 gradients have no range of their own.
        divisor: Scalar by which the gradients are larger than the norm that is wanted, e.g. the
            loss scale.

    Returns:
        `Statistics`. Without gradients they are finite, of norm 0.
    """
    if not gradients:
        return Statistics(ops.convert_to_tensor(True), ops.zeros((), "float32"))
    wide = widest(gradients)
    total = sum_of_squares(gradients, wide)

    def from_first_pass() -> tuple[Tensor, Tensor]:
        norm = _norm(total, divisor)
        return _representable(norm, divisor), ops.minimum(norm, FLOAT32_MAX)

    def from_second_pass() -> tuple[Tensor, Tensor]:
        # XLA rewrites (g * c) * (g * c) as (g * g) * (c * c) where c is a constant, which would
        # overflow again: this factor is known at run time only.
        one, downscale = (ops.convert_to_tensor(c, wide) for c in (1.0, DOWNSCALE[wide]))
        factor = ops.where(ops.isfinite(total), one, downscale)
        small = sum_of_squares([ops.multiply(ops.cast(g, wide), factor) for g in gradients], wide)
        norm = _norm(small, ops.multiply(ops.cast(divisor, wide), factor))
        finite = ops.logical_and(ops.isfinite(small), _representable(norm, divisor))
        capped = ops.minimum(norm, FLOAT32_MAX)
        return finite, ops.where(finite, capped, ops.cast(ops.sqrt(total), "float32"))

    return Statistics(*ops.cond(ops.isfinite(total), from_first_pass, from_second_pass))


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Returns a boolean scalar: no element of any tensor is inf or NaN."""
    if not tensors:
        return ops.convert_to_tensor(True)
    return ops.all(ops.stack([ops.all(ops.isfinite(tensor)) for tensor in tensors]))


def dense(gradient: Tensor) -> Tensor:
    """Returns the gradient as a plain tensor; rows that are given twice are added.

    Each of two finite rows may fit, and their sum not: only the sum can be checked.
    """
    return _backend().dense(gradient)


def widest(tensors: Sequence[Tensor]) -> str:
    """Returns the dtype in which to sum: `"float64"` if there is one, else `"float32"`."""
    dtypes = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    return "float64" if "float64" in dtypes else "float32"


def sum_of_squares(tensors: Sequence[Tensor], dtype: str) -> Tensor:
    """Returns the sum of the squares of all elements, as a scalar of `dtype`."""
    return _backend().sum_of_squares([ops.cast(tensor, dtype) for tensor in tensors])


def _norm(total: Tensor, divisor: Tensor) -> Tensor:
    return ops.cast(ops.divide(ops.sqrt(total), ops.cast(divisor, total.dtype)), "float32")


def _representable(norm: Tensor, divisor: Tensor) -> Tensor:
    """Divided by less than 1, finite gradients may overflow; by more, only their norm can."""
    return ops.logical_or(ops.isfinite(norm), ops.greater_equal(divisor, 1.0))


def _backend() -> ModuleType:
    return importlib.import_module(f"deepseek_hpf.optimizers.finite_{keras.backend.backend()}")
