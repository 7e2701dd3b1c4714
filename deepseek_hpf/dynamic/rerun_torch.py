"""Runs a training step again on PyTorch and puts back what it wrote."""

from collections.abc import Callable
from contextlib import AbstractContextManager
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
    with restored(model, guard_torch), listening():
        model.train_step(data)
