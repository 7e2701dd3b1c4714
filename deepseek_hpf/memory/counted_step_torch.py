"""A forward pass under PyTorch, in which layers tell what they would keep."""

from typing import Any

import keras
import torch


def run(model: keras.Model, x: Any, y: Any, weights: Any) -> None:
    """Runs the forward pass: what is kept is saved then.

    Args:
        model: A compiled model.
        x: Inputs, as tensors.
        y: Not used.
        weights: Not used.
    """
    with torch.enable_grad():
        model(x, training=True)
