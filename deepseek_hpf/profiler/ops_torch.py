"""The few functions of `keras.ops` that the statistics of ranges take, straight from PyTorch."""

from typing import Any

import torch

bitwise_and = torch.bitwise_and
bitwise_or = torch.bitwise_or
clip = torch.clamp
left_shift = torch.bitwise_left_shift
logical_and = torch.logical_and
logical_not = torch.logical_not
max = torch.max
min = torch.min
right_shift = torch.bitwise_right_shift
round = torch.round
square = torch.square
stack = torch.stack
sum = torch.sum
where = torch.where
zeros_like = torch.zeros_like


def cast(values: Any, dtype: str) -> Any:
    """Values in another dtype."""
    return values.to(getattr(torch, dtype))


def view(values: Any, dtype: str) -> Any:
    """The same bits, read as another dtype."""
    return values.view(getattr(torch, dtype))


def maximum(values: Any, bound: int) -> Any:
    """Values, or the bound where they are smaller."""
    return values.clamp(min=bound)
