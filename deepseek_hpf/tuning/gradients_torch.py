"""Loss and gradients under PyTorch."""

from typing import Any

import keras
import torch


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
    predicted = model(x, training=True)
    loss = model.compute_loss(x, y, predicted, weights, training=True)
    scaled = model.optimizer.scale_loss(loss)
    leaves = [variable.value for variable in model.trainable_variables]
    return loss.detach(), list(torch.autograd.grad(scaled, leaves, allow_unused=True))
