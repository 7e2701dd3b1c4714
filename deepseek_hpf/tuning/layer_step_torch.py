"""The forward and backward pass of one layer under PyTorch."""

from collections.abc import Callable
from typing import Any

import keras
import torch

from deepseek_hpf.tuning.training_step_torch import drain


def layer_step(
    layer: keras.Layer, call: Any, upstream: list[Any], *, jit_compile: bool = False
) -> Callable[[], tuple[list[Any], list[Any]]]:
    """Makes a function of a call of a layer and its gradients.

    Args:
        layer: The layer, built.
        call: `(args, kwargs)`, with tensors in them.
        upstream: The gradient of each float tensor of the result.
        jit_compile: Not heeded: PyTorch's compiler would take seconds for each layer.

    Returns:
        What runs it to its end and returns the float results, and the gradients of float inputs and
        trainable weights, each a tensor or None.
    """
    flat = keras.tree.flatten(call)

    def step() -> tuple[list[Any], list[Any]]:
        values = [_leaf(value) for value in flat]
        args, kwargs = keras.tree.pack_sequence_as(call, values)
        result = keras.tree.flatten(layer(*args, **kwargs))
        outputs = [value for value in result if _is_float(value) and value.requires_grad]
        weights = [weight.value for weight in layer.trainable_weights]
        leaves = [value for value in values if _is_float(value)] + weights
        if not outputs or not leaves:
            return [value for value in result if _is_float(value)], []
        pulled = [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
        gradients = torch.autograd.grad(outputs, leaves, pulled, allow_unused=True)
        drain()
        return [value.detach() for value in outputs], list(gradients)

    return step


def run_recorded(model: keras.Model, x: Any, taken: Callable[[], list[Any]]) -> list[Any]:
    """Runs a model forward in training, and hands on what has been taken on the way.

    Args:
        model: The model.
        x: Its inputs.
        taken: Returns the tensors that were taken; called when the pass is over.

    Returns:
        Their values.
    """
    with torch.no_grad():
        model(x, training=True)
        return taken()


def _leaf(value: Any) -> Any:
    return value.detach().requires_grad_() if _is_float(value) else value


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
