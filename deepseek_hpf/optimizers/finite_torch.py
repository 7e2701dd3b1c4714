"""Sums of squares for PyTorch: one call for the norms of all tensors."""

from collections.abc import Sequence

import torch


def sum_of_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of the squares of all elements of the tensors, which share one dtype."""
    return torch.nn.utils.get_total_norm(tensors).square()


def dense(gradient: torch.Tensor) -> torch.Tensor:
    """Returns the gradient as a plain tensor; rows that are given twice are added."""
    return gradient.to_dense() if gradient.is_sparse else gradient
