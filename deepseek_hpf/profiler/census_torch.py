"""PyTorch: the operations that one eager training step dispatches, each timed."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import torch

from deepseek_hpf.adapters.adjoining_step import values_restored
from deepseek_hpf.profiler.census_operations import TracedOperation
from deepseek_hpf.profiler.operations_torch import OperationRecorder

ORIGIN = (
    "The operations that PyTorch dispatched in one eager training step; times are those of each "
    "operation, waited for."
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
    recorder = OperationRecorder(measure, _place)
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


def _place() -> str:
    """Keras's name scope in the forward pass; PyTorch tells nothing of it in the backward pass."""
    path: str = keras.src.backend.common.name_scope.current_path()
    return path


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
