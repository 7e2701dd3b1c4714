"""Gradients of which each rank holds a part: which part, and how often it is there."""

import math
from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor

from deepseek_hpf.torch.gradients import Statistics, gradient_statistics, values_of


def copies_of(tensor: torch.Tensor) -> int:
    """Returns on how many ranks of its mesh a tensor's part is the same; 0 if it is no shard.

    Args:
        tensor: A gradient.

    Returns:
        1 under `fully_shard` on a mesh of one dimension; the size of the replicated dimension on
        one of two; 0 for a plain tensor.
    """
    if not isinstance(tensor, DTensor):
        return 0
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not placement.is_shard())


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Returns this rank's part of a gradient, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def statistics_of_parts(gradients: Sequence[torch.Tensor]) -> tuple[Statistics, Statistics]:
    """Checks and measures what this rank holds, apart for shards and for whole gradients.

    Args:
        gradients: Of one step.

    Returns:
        Of the shards, whose norm is this rank's part of that of all: squared and added over the
        ranks they give the squared norm of the whole. And of the gradients that each rank holds
        whole.
    """
    by_copies: dict[int, list[torch.Tensor]] = {0: []}
    for gradient in gradients:
        by_copies.setdefault(copies_of(gradient), []).append(values_of(local_part(gradient)))
    whole = gradient_statistics(by_copies.pop(0))
    parts = [
        (copies, gradient_statistics(tensors)) for copies, tensors in sorted(by_copies.items())
    ]
    shards = Statistics(
        finite=all(part.finite for _, part in parts),
        norm=math.hypot(*(part.norm / math.sqrt(copies) for copies, part in parts)),
    )
    return shards, whole
