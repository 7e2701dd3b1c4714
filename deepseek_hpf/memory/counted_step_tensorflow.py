"""A training step, traced under TensorFlow, so that its layers tell what they would keep."""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.tuning.gradients_tensorflow import loss_and_gradients


def run(model: keras.Model, x: Any, y: Any, weights: Any) -> None:
    """Traces a step, gradients included: it is then that is known what they need.

    Args:
        model: A compiled model.
        x: Inputs, as tensors.
        y: Targets.
        weights: Sample weights, or None.
    """

    def step(x: Any, y: Any, weights: Any) -> Any:
        return loss_and_gradients(model, x, y, weights)

    tf.function(step, autograph=False).get_concrete_function(x, y, weights)
