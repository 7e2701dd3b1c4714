"""Runs a step under PyTorch, which is eager: the branch is Python's."""

import functools
from typing import Any

import torch

from deepseek_hpf.optimizers import fused_update_torch as fused
from deepseek_hpf.optimizers.clipping_rule import Decision
from deepseek_hpf.optimizers.replacement import replaced
from deepseek_hpf.optimizers.step import Step


@torch.no_grad()
def apply(step: Step) -> None:
    """Updates or skips."""
    statistics = step.measure()
    if statistics.finite:
        step.take(statistics, _fused(step) if fused.suits(step) else step.update)
    else:
        step.skip(statistics)


def _fused(step: Step) -> Any:
    def update(norm: torch.Tensor) -> Decision:
        own = functools.partial(fused.update, step.inner)
        with replaced(step.inner, "_backend_update_step", own):
            return step.update(norm)

    return update
