"""The gradients of one optimizer step: are they finite, and how large is their norm."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from deepseek_hpf.config import FLOAT32_MAX

# Times this, the square of no finite number overflows when it is summed. Powers of two round
# nothing.
DOWNSCALE = {torch.float32: 2.0**-96, torch.float64: 2.0**-600}


class Statistics(NamedTuple):
    """What one pass over the gradients tells.

    Attributes:
        finite: Whether no gradient holds an inf or a NaN.
        norm: L2 norm of all gradients together, at most float32's largest number if they are
            finite, else the inf or NaN that was found.
    """

    finite: bool
    norm: float


def merge_rows(parameter: torch.Tensor) -> None:
    """Adds the rows that a sparse gradient gives twice.

    Each of two finite rows may fit, and their sum not: only the sum can be checked.
    """
    if parameter.grad.is_sparse and not parameter.grad.is_coalesced():
        parameter.grad = parameter.grad.coalesce()


def values_of(gradient: torch.Tensor) -> torch.Tensor:
    """Returns the numbers that a gradient stores, as real numbers, sharing its memory."""
    values = gradient if gradient.layout is torch.strided else gradient.values()
    return torch.view_as_real(values) if values.is_complex() else values


def gradient_statistics(gradients: Sequence[torch.Tensor]) -> Statistics:
    """Checks gradients and measures their norm, in one pass unless a square overflows.

    Args:
        gradients: Tensors of any floating dtype and device, as `values_of` returns them.

    Returns:
        `Statistics`. Without gradients they are finite, of norm 0.
    """
    values = [_wide(gradient) for gradient in gradients if gradient.numel()]
    if not values:
        return Statistics(finite=True, norm=0.0)
    norm = _norm(values)
    if math.isfinite(norm):
        return Statistics(finite=True, norm=min(norm, FLOAT32_MAX))
    # A norm that is not finite is no proof: squares of finite numbers overflow from 1.8e19 on.
    if not all(bool(torch.isfinite(value).all()) for value in values):
        return Statistics(finite=False, norm=norm)
    widest = torch.float64 if any(v.dtype == torch.float64 for v in values) else torch.float32
    factor = DOWNSCALE[widest]
    norm = _norm([value.to(widest) * factor for value in values]) / factor
    return Statistics(finite=True, norm=min(norm, FLOAT32_MAX))


def _norm(values: Sequence[torch.Tensor]) -> float:
    return float(torch.nn.utils.get_total_norm(values))


def _wide(values: torch.Tensor) -> torch.Tensor:
    """float16 squares would overflow from 256 on, and bfloat16 sums lose what is small."""
    return values if values.dtype in DOWNSCALE else values.float()
