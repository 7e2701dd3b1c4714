"""Gradients with one layer's storage at a time, by one compiled step for all, under JAX."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import keras

from deepseek_hpf.adapters.activation_storage import StorageChooser
from deepseek_hpf.adapters.own_call import set_call
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.memory.trial_gradients import Gradients, Trial
from deepseek_hpf.storage.stored_call import Settings
from deepseek_hpf.storage.tried_calls_jax import Chosen, tried
from deepseek_hpf.tuning.gradients_jax import loss_of, state_of
from deepseek_hpf.tuning.training_step import Batch

_NONE = -1
# It runs a few dozen times: to make it fast would take longer than it runs.
_QUICKLY_COMPILED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@contextmanager
def trying(
    model: keras.Model, batch: Batch, trials: Sequence[Trial], chooser: StorageChooser
) -> Iterator[Gradients]:
    """Makes ready to try storages, as `trial_gradients.trying` does."""
    numbers = {(id(layer), storage): n for n, (layer, storage) in enumerate(trials)}
    by_layer: dict[int, dict[int, Settings]] = defaultdict(dict)
    for (layer, storage), number in numbers.items():
        by_layer[layer][number] = chooser.settings(storage)
    chosen, log = Chosen(), UndoLog()

    def of(state: list[Any], batch: Batch, number: Any) -> Any:
        chosen.number = number
        return jax.value_and_grad(loss_of(model), has_aux=True)(*state, *batch)

    options = _QUICKLY_COMPILED if jax.default_backend() == "cpu" else None
    compiled = jax.jit(of, compiler_options=options)

    def gradients(trial: Trial | None) -> tuple[Any, list[Any]]:
        number = _NONE if trial is None else numbers[id(trial[0]), trial[1]]
        (_, (loss, *_)), found = compiled(state_of(model), batch, number)
        return loss, found

    try:
        for layer in {id(layer): layer for layer, _ in trials}.values():
            wrapper = tried(layer, layer.call, by_layer[id(layer)], chosen)
            set_call(log, layer, wrapper)
        yield gradients
    finally:
        log.undo()
