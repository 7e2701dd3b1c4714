"""Runs a training step again on TensorFlow, on each replica, and puts back what it wrote."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import keras

from deepseek_hpf.adapters import guard_tensorflow
from deepseek_hpf.dynamic.restored_state import restored

Listening = Callable[[], AbstractContextManager[None]]


def run(model: keras.Model, data: Any, listening: Listening) -> None:
    """Runs the step eagerly.

    Args:
        model: The model.
        data: A batch, or values per replica.
        listening: The context in which it runs.
    """

    def step(batch: Any) -> None:
        with restored(model, guard_tensorflow), listening():
            model.train_step(batch)

    model.distribute_strategy.run(step, args=(data,))
