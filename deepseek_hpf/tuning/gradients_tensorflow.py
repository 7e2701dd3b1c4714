"""Loss and gradients under TensorFlow, eagerly: nothing is traced."""

from typing import Any

import keras
import tensorflow as tf


def loss_and_gradients(model: keras.Model, x: Any, y: Any, weights: Any) -> tuple[Any, list[Any]]:
    """Runs a model forward and backward; layers write what they write in training.

    Args:
        model: A compiled model.
        x: Inputs.
        y: Targets.
        weights: Sample weights, or None.

    Returns:
        The loss, and the gradient of the scaled loss for each trainable variable, or None.
    """
    with tf.GradientTape() as tape:
        predicted = model(x, training=True)
        loss = model.compute_loss(x, y, predicted, weights, training=True)
        scaled = model.optimizer.scale_loss(loss)
    gradients = tape.gradient(scaled, [v.value for v in model.trainable_variables])
    return loss, [tf.convert_to_tensor(g) if g is not None else None for g in gradients]
