"""PyTorch: the operations that one eager training step dispatches, each timed."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import keras
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from deepseek_hpf.adapters.adjoining_step import values_restored
from deepseek_hpf.profiler.census_flops import elementwise_flops
from deepseek_hpf.profiler.census_operations import Array, TracedOperation

ORIGIN = (
    "The operations that PyTorch dispatched in one eager training step; times are those of each "
    "operation, waited for."
)
_MOVES = frozenset(
    """
    _to_copy copy_ clone cat stack index_select gather index constant_pad_nd fill_ zero_ zeros
    ones full empty empty_like zeros_like ones_like full_like new_zeros scalar_tensor arange
    contiguous select_backward slice_backward embedding one_hot repeat flip roll
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)


Traced = tuple[list[TracedOperation], list[str]]


def trace_step(model: keras.Model, batch: Any, measure: bool) -> Traced:
    """Runs one training step twice and lists the operations of the second, if measured.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: Tensors.
        measure: Whether to time the operations, after a first run to warm up.

    Returns:
        The operations in the order in which they ran, views left out as they move nothing; notes.
    """
    recorder = _Recorder(measure)
    with _left_as_it_was(model):
        if measure:
            model.train_step(batch)
        with recorder:
            model.train_step(batch)
    return recorder.operations, _notes(model)


def _notes(model: keras.Model) -> list[str]:
    if not model.jit_compile:
        return []
    return ["The model trains with torch.compile, which fuses these operations."]


class _Recorder(TorchDispatchMode):
    """Sees every operation below autograd, forward and backward."""

    def __init__(self, measure: bool) -> None:
        super().__init__()
        self.operations: list[TracedOperation] = []
        self._measure = measure

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = _now(self._measure)
        result = func(*args, **kwargs)
        seconds = _now(self._measure) - start if self._measure else None
        if not getattr(func, "is_view", False):
            self._add(func, args, kwargs, result, seconds)
        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any, seconds: float | None) -> None:
        packet = func.overloadpacket
        name = packet.__name__
        inputs = _arrays((args, kwargs))
        outputs = _arrays(result)
        if name in ("detach", "alias", "_local_scalar_dense", "lift_fresh") or not outputs:
            return
        if name == "copy_" and len(inputs) > 1:  # writes the first, reads the second
            inputs = inputs[1:]
        casts = name in ("_to_copy", "copy_") and inputs and inputs[0].dtype != outputs[0].dtype
        flops = 0.0
        if packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=result))
        elif name not in _MOVES:
            flops = elementwise_flops(inputs, outputs)
        place = _place()
        self.operations.append(
            TracedOperation(name, place, inputs, outputs, flops, bool(casts), seconds=seconds)
        )


def _arrays(values: Any) -> tuple[Array, ...]:
    return tuple(
        Array(str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape))
        for leaf in tree_leaves(values)
        if isinstance(leaf, torch.Tensor)
    )


def _place() -> str:
    """Keras's name scope in the forward pass; PyTorch tells nothing of it in the backward pass."""
    path: str = keras.src.backend.common.name_scope.current_path()
    return path


def _now(wait: bool) -> float:
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def _left_as_it_was(model: keras.Model) -> Iterator[None]:
    """Puts back variables, buffers, gradients and PyTorch's own random states."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices), values_restored(model):
        for parameter in parameters:  # the step would add to, or zero, the ones that are there
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
