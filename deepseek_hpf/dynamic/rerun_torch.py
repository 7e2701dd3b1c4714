"""Runs a training step again on PyTorch and puts back what it wrote."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras

from deepseek_hpf.adapters import guard_torch
from deepseek_hpf.dynamic.restored_state import restored

Listening = Callable[[], AbstractContextManager[None]]


def run(model: keras.Model, data: Any, listening: Listening) -> None:
    """Runs the step.

    Args:
        model: The model.
        data: A batch.
        listening: The context in which it runs.
    """
    with restored(model, guard_torch), _in_training(model), listening():
        model.train_step(data)


@contextmanager
def _in_training(model: keras.Model) -> Iterator[None]:
    """The mode of a training step: `fit` has left it when an epoch's last step is looked into."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
