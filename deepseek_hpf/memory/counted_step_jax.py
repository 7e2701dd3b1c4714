"""A forward pass, traced under JAX, in which layers tell what they would keep."""

from collections.abc import Callable
from typing import Any

import jax
import keras


def run(model: keras.Model, x: Any, y: Any, weights: Any) -> None:
    """Traces the forward pass: layers know from that what their backward passes need.

    Args:
        model: A compiled model with its optimizer built.
        x: Inputs, as arrays.
        y: Targets.
        weights: Sample weights, or None.
    """
    # The batch comes in as it does in a step: what is known when tracing would be a constant.
    jax.eval_shape(loss_of(model), *state_of(model), x, y, weights)


def loss_of(model: keras.Model) -> Callable[..., Any]:
    """The loss as a pure function of what `state_of` returns and a batch, each time a new one."""

    # JAX would run the trace of a function that it knows.
    def of(
        trainable: list[Any], others: list[Any], metrics: list[Any], slots: list[Any], *batch: Any
    ) -> Any:
        return model.compute_loss_and_updates(
            trainable, others, metrics, *batch, training=True, optimizer_variables=slots
        )

    return of


def state_of(model: keras.Model) -> list[list[Any]]:
    """Values of the variables: trainable, others, those of metrics, those of the optimizer."""
    return [
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.metrics_variables,
            model.optimizer.variables,
        )
    ]
