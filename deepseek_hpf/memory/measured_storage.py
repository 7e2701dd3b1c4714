"""What storages do to a model, measured on one batch: bytes kept, and errors of the gradient."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.activation_storage import StorageChooser
from deepseek_hpf.adapters.adjoining_step import standing_in, values_restored
from deepseek_hpf.adapters.expected_retraces import expected_retraces
from deepseek_hpf.adapters.own_call import set_call
from deepseek_hpf.adapters.random_generators import random_states_kept
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.memory.trial_gradients import Gradients, Trial
from deepseek_hpf.storage.kept_count import KeptCount
from deepseek_hpf.storage.stored_call import counted_calls
from deepseek_hpf.tuning.numerical_error import StepValues
from deepseek_hpf.tuning.training_step import Batch

_TRYING = {"jax": "deepseek_hpf.memory.trial_gradients_jax"}
_TRYING_EAGERLY = "deepseek_hpf.memory.trial_gradients"
_SAME_LOSS = 1e-3  # relative: what a compiler may make of the same forward pass


class MeasuredStorage:
    """Steps of a model on one batch, of which nothing is left in the model.

    Args:
        model: A compiled model.
        batch: Tensors.
        rewind: Gives all variables the values that they had.
    """

    def __init__(self, model: keras.Model, batch: Batch, rewind: Callable[[], None]):
        self._model, self._batch, self._rewind = model, batch, rewind

    @classmethod
    @contextmanager
    def of(cls, model: keras.Model, batch: Batch) -> Iterator["MeasuredStorage"]:
        """Makes one, and sees to it that nothing is left.

        Args:
            model: A compiled model.
            batch: Tensors.

        Yields:
            The steps.
        """
        with (
            expected_retraces(),
            random_states_kept(),
            standing_in(model),
            values_restored(model) as rewind,
        ):
            yield cls(model, batch, rewind)

    def counted(self, layers: Mapping[str, keras.Layer], count: KeptCount) -> None:
        """Notes what each layer would keep.

        Args:
            layers: The layers by path.
            count: Where to note it.
        """
        name = f"deepseek_hpf.memory.counted_step_{keras.backend.backend()}"
        log, calls = UndoLog(), counted_calls()
        try:
            for path, layer in layers.items():
                set_call(log, layer, calls.counted(layer, layer.call, path, count))
            importlib.import_module(name).run(self._model, *self._batch)
        finally:
            log.undo()
            self._rewind()

    def errors(self, trials: Sequence[Trial], chooser: StorageChooser) -> list[float]:
        """How far each of some storages moves the gradient, relative to its length.

        Args:
            trials: Layers and storages.
            chooser: Makes the wrappers.

        Returns:
            An error for each trial; inf where a gradient is no longer finite.

        Raises:
            ConfigError: Loss or gradient of the model as it is are not finite, or there is none.
            PrecisionError: The forward pass is another one each time.
        """
        module = importlib.import_module(_TRYING.get(keras.backend.backend(), _TRYING_EAGERLY))
        with ExitStack() as stack:
            if not self._model.trainable_variables:
                raise ConfigError(
                    "Expected a model that is trained, whose gradient can be measured. Received: "
                    f"{self._model.name!r}, which has no trainable variables."
                )
            trying = module.trying(self._model, self._batch, trials, chooser)
            gradients: Gradients = stack.enter_context(trying)
            exact = self._values(gradients, None)
            if not exact.deviation(exact).is_finite or not np.isfinite(exact.loss):
                raise ConfigError(
                    "Expected a batch whose loss and gradient are finite. Received: one whose are "
                    "not. Take another batch, or measure in a wider format."
                )
            return [self._error(gradients, trial, exact) for trial in trials]

    def _error(self, gradients: Gradients, trial: Trial, exact: StepValues) -> float:
        found = self._values(gradients, trial).deviation(exact)
        if found.loss > _SAME_LOSS:
            layer, storage = trial
            raise PrecisionError(
                "Expected the same loss twice on the same batch. Received: one that is "
                f"{found.loss:g} off while {layer.name!r} keeps its activations in {storage!r}. "
                "Draw what is random in the model from a `keras.random.SeedGenerator`."
            )
        return found.gradients

    def _values(self, gradients: Gradients, trial: Trial | None) -> StepValues:
        loss, found = gradients(trial)
        values = StepValues(float(_host(loss)), tuple(map(_host, found)))
        self._rewind()
        return values


def _host(value: Any) -> Any:
    if value is None:
        return None
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))
