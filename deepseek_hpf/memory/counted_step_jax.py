"""A forward pass, traced under JAX, in which layers tell what they would keep."""

from typing import Any

import jax
import keras

from deepseek_hpf.tuning.gradients_jax import loss_of, state_of


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
