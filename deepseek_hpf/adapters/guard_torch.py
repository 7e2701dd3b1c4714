"""Reading and putting back variables on PyTorch: eagerly, in place."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import torch

_Wrapper = keras.layers.TorchModuleWrapper


def read(variables: list[Any]) -> list[torch.Tensor]:
    """Copies the values of variables, which are changed in place.

    Args:
        variables: Keras variables, or buffers of PyTorch modules.

    Returns:
        Tensors of their own, with no gradient.
    """
    return [_tensor(variable).detach().clone() for variable in variables]


def write(variables: list[Any], values: list[Any]) -> None:
    """Writes variables in place.

    Args:
        variables: Keras variables, or buffers of PyTorch modules.
        values: Tensors of their shapes and dtypes.
    """
    with torch.no_grad():
        for variable, value in zip(variables, values, strict=True):
            _tensor(variable).copy_(value)


def when(condition: Any, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """Runs one of two branches.

    The host reads the condition. The optimizer has just done the same, to decide about the skip.

    Args:
        condition: Scalar bool tensor.
        on_true: Called without arguments.
        on_false: The same.

    Returns:
        What the branch returned.
    """
    with torch.no_grad():
        return on_true() if bool(condition) else on_false()


def build(model: keras.Model, data: Any) -> bool:
    """Returns True: on PyTorch `fit` builds model, metrics and optimizer before the first step."""
    return True


def scope(model: keras.Model) -> Any:
    """Returns a context that does nothing: one process, one copy of each variable."""
    return contextlib.nullcontext()


def buffers(model: keras.Model) -> list[Any]:
    """Lists the buffers of wrapped PyTorch modules, e.g. statistics of `torch.nn.BatchNorm1d`."""
    wrapped = (layer for layer in model._flatten_layers() if isinstance(layer, _Wrapper))
    return [buffer for layer in wrapped for buffer in layer.module.buffers()]


def random_state() -> list[torch.Tensor]:
    """Copies the states of PyTorch's own generators, from which Keras draws where no seed is given.

    Returns:
        The state of the CPU's generator, and of the current GPU's if GPUs are in use.
    """
    states = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        states.append(torch.cuda.get_rng_state())
    return states


def set_random_state(states: list[torch.Tensor]) -> None:
    """Sets the generators back.

    Args:
        states: What `random_state` returned.
    """
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])


def _tensor(variable: Any) -> torch.Tensor:
    return variable if isinstance(variable, torch.Tensor) else variable.value
