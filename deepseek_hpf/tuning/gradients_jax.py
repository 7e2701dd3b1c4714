"""Loss and gradients under JAX, compiled, as the training step takes them."""

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

    # A function of its own: JAX would run the trace of one that it knows.
    def of(trainable: list[Any], others: list[Any], metrics: list[Any], slots: list[Any]) -> Any:
        return model.compute_loss_and_updates(
            trainable, others, metrics, x, y, weights, training=True, optimizer_variables=slots
        )

    state = [
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.metrics_variables,
            model.optimizer.variables,
        )
    ]
    (_, (loss, *_)), gradients = jax.jit(jax.value_and_grad(of, has_aux=True))(*state)
    return loss, gradients
