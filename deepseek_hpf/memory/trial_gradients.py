"""Gradients with one layer's storage at a time, operation by operation: nothing is compiled."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from deepseek_hpf.adapters.activation_storage import StorageChooser
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.tuning.training_step import Batch

Trial = tuple[keras.Layer, str]
# From a trial, or None for the model as it is, to the loss and the gradients.
Gradients = Callable[[Trial | None], tuple[Any, list[Any]]]


@contextmanager
def trying(
    model: keras.Model, batch: Batch, trials: Sequence[Trial], chooser: StorageChooser
) -> Iterator[Gradients]:
    """Makes ready to try storages.

    Args:
        model: A compiled model with its optimizer built. What its layers write stays written.
        batch: Tensors.
        trials: Layers and storages.
        chooser: Makes the wrappers.

    Yields:
        What takes gradients with one of the trials, or none.
    """
    backend = keras.backend.backend()
    module = importlib.import_module(f"deepseek_hpf.tuning.gradients_{backend}")

    def gradients(trial: Trial | None) -> tuple[Any, list[Any]]:
        log = UndoLog()
        try:
            if trial is not None:
                layer, storage = trial
                log.set_on_instance(layer, "call", chooser.hook(layer, storage).wrap(layer.call))
            loss, found = module.loss_and_gradients(model, *batch)
            return loss, found
        finally:
            log.undo()

    yield gradients
