"""Runs a function of tensors under PyTorch, until the device is done."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


def running(
    function: Callable[..., Any], inputs: Sequence[Any], *, with_gradients: bool
) -> Callable[[], None]:
    """Makes a work that can be timed.

    Args:
        function: Takes the inputs, returns a tensor.
        inputs: Tensors.
        with_gradients: Whether the gradients by all inputs are taken too.

    Returns:
        A function that computes once, eagerly as Keras does, and waits.
    """
    leaves = [value.detach().requires_grad_(with_gradients) for value in inputs]
    on_accelerator = any(value.device.type != "cpu" for value in leaves)

    def work() -> None:
        with torch.set_grad_enabled(with_gradients):
            output = function(*leaves)
            if with_gradients:
                torch.autograd.grad(output, leaves, grad_outputs=output.detach())
        if on_accelerator:
            torch.accelerator.synchronize()

    return work
