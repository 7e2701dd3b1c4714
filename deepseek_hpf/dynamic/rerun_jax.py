"""Runs a training step again on JAX, where a step takes the state and returns a new one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import keras

Listening = Callable[[], AbstractContextManager[None]]


def run(model: keras.Model, data: Any, listening: Listening) -> None:
    """Runs the step eagerly; the state that it returns is dropped.

    Args:
        model: The model, also one in `fit`, which reads the state anew at its next step.
        data: A batch.
        listening: The context in which it runs.
    """
    model.jax_state_sync()
    state = tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    with listening():
        model.train_step(state, data)
        jax.effects_barrier()
