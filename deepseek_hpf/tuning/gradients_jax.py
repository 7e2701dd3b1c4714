"""Loss and gradients under JAX, compiled, as the training step takes them."""

from collections.abc import Callable
from typing import Any

import jax
import keras


def loss_and_gradients(model: keras.Model, x: Any, y: Any, weights: Any) -> tuple[Any, list[Any]]:
    """Runs a model forward and backward; no variable is written.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Targets.
        weights: Sample weights, or None.

    Returns:
        The loss, and the gradient of the scaled loss for each trainable variable.
    """

    def of(*state: list[Any]) -> Any:
        return loss_of(model)(*state, x, y, weights)

    (_, (loss, *_)), gradients = jax.jit(jax.value_and_grad(of, has_aux=True))(*state_of(model))
    return loss, gradients


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
