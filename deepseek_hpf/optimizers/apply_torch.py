"""Runs a step under PyTorch, which is eager: the branch is Python's."""

import torch

from deepseek_hpf.optimizers.step import Step


@torch.no_grad()
def apply(step: Step) -> None:
    """Updates or skips."""
    statistics = step.measure()
    if statistics.finite:
        step.take(statistics, step.update)
    else:
        step.skip(statistics)
