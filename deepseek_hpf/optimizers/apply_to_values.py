"""Runs a step as a function of values, as JAX needs it."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.step import Step

Tensor = Any


def apply_to_values(
    step: Step, optimizer_values: Sequence[Tensor], trainable_values: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs a step on values instead of variables.

    Returns:
        New values of the trainable variables, and of the optimizer's variables.
    """
    optimizer = step.optimizer
    trainable = optimizer._trainable_variables
    mapping = [
        *zip(trainable, trainable_values, strict=True),
        *zip(optimizer.variables, optimizer_values, strict=True),
    ]

    def values_after(run: Any, *arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        with keras.StatelessScope(state_mapping=mapping) as scope:
            run(*arguments)
        current = scope.get_current_value
        return [current(v) for v in trainable], [current(v) for v in optimizer.variables]

    with keras.StatelessScope(state_mapping=mapping):
        statistics = step.measure()
    return ops.cond(
        statistics.finite,
        lambda: values_after(step.take, statistics, step.update),
        lambda: values_after(step.skip, statistics),
    )
