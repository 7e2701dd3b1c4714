"""Taps under PyTorch: tensor hooks for gradients, a dispatch mode for operations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from deepseek_hpf.profiler import ops_torch
from deepseek_hpf.profiler.statistics import EXPONENTS, Partial, partial_statistics


def _count(exponents: Any) -> Any:
    return torch.bincount(exponents, minlength=EXPONENTS + 1)


def reduce(values: Any) -> Partial:
    """Statistics of a chunk of values.

    Args:
        values: Float tensor of one axis.

    Returns:
        What `Summary.add` takes.
    """
    with torch.no_grad():
        parts = partial_statistics(values.detach(), _count, ops_torch)
    return tuple(part.cpu().numpy() for part in parts)


def is_concrete(tensor: Any) -> bool:
    """Whether values can be read now."""
    return isinstance(tensor, torch.Tensor) and tensor.device.type != "meta"


def with_gradient(tensor: Any, report: Callable[[Any], None]) -> Any:
    """The tensor, and a call of `report` with its gradient when that is known."""
    if tensor.requires_grad:
        tensor = tensor.view_as(tensor)

        def backward(gradient: Any) -> None:
            report(gradient)

        tensor.register_hook(backward)
    return tensor


def differentiate(
    function: Callable[[list[Any]], Any], values: list[Any]
) -> tuple[Any, Callable[[], list[Any]]]:
    """Runs a function; its gradients are computed when asked for.

    Args:
        function: From values to a scalar, or None where there is no loss.
        values: Tensors.

    Returns:
        The scalar, and a function that returns one gradient, or None, for each value.
    """
    leaves = [value.detach().clone().requires_grad_(value.is_floating_point()) for value in values]
    with torch.enable_grad():
        loss = function(leaves)
    return loss, lambda: _gradients(loss, leaves)


def _gradients(loss: Any, leaves: list[Any]) -> list[Any]:
    if not loss.requires_grad:
        return [None] * len(leaves)
    return list(torch.autograd.grad(loss, leaves, allow_unused=True))


class _Listener(TorchDispatchMode):
    def __init__(self, seen: Callable[[str, list[Any], list[Any]], None]):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        outputs = [x for x in tree_flatten(result)[0] if isinstance(x, torch.Tensor)]
        self._seen(func.overloadpacket.__name__, inputs, outputs)
        return result


@contextmanager
def listening(seen: Callable[[str, list[Any], list[Any]], None]) -> Iterator[None]:
    """Calls `seen(name, inputs, outputs)` for every operation that runs in this thread."""
    with _Listener(seen):
        yield


def random_states() -> list[tuple[Callable[[Any], Any], Any]]:
    """PyTorch's generators: how to set each, and its present state."""
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (torch.random.set_rng_state, torch.random.get_rng_state())
    ]
    if torch.cuda.is_available():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return states
