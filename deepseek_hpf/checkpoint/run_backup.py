"""A training run into a backup, and back out of it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.guard import skip_causes
from deepseek_hpf.adapters.step_logs import PRECISION_LOGS
from deepseek_hpf.checkpoint import other_back_end, training_state
from deepseek_hpf.checkpoint.backup_store import Backup, BackupStore
from deepseek_hpf.checkpoint.random_states import RandomStates, capture_random_states
from deepseek_hpf.checkpoint.training_state import HasState, StateVariable
from deepseek_hpf.errors import ConfigError


def write_run(
    store: BackupStore,
    model: Any,
    position: tuple[int, int],
    *,
    history: Mapping[str, Any],
    extras: Mapping[str, HasState],
    epoch_states: RandomStates,
) -> None:
    """Backs up a run between two steps.

    Args:
        store: Where to.
        model: The model in `fit`.
        position: Epoch, and steps completed in it; metrics are backed up if there are any.
        history: What `history` returned.
        extras: Further states by name.
        epoch_states: The global generators as they stood when the epoch began.
    """
    # First, for a controller may yet look at the last step, and set the loss scale.
    states = {name: dict(extra.get_state()) for name, extra in extras.items()}
    if keras.backend.backend() == "jax":
        model.jax_state_sync()
    epoch, step = position
    variables = training_state.training_variables(model, metrics=step > 0)
    now = capture_random_states()
    manifest = {
        "backend": keras.backend.backend(),
        "keras": keras.__version__,
        "epoch": epoch,
        "step": step,
        "optimizer": training_state.optimizer_description(model.optimizer),
        "variables": [entry.describe() for entry in variables],
        "extras": {name: _without_arrays(state) for name, state in states.items()},
        "history": history,
        "random": now,
        "random_at_epoch_begin": epoch_states if step else now,
    }
    store.write(manifest, _arrays(variables, states))


def check_run(backup: Backup, model: Any, extras: Mapping[str, HasState]) -> None:
    """Refuses a backup of another kind of run, as far as can be told of an unbuilt model.

    Args:
        backup: A whole backup.
        model: The model in `fit`.
        extras: The callback's further states.

    Raises:
        ConfigError: `extras` or `steps_per_execution` do not agree.
    """
    manifest, execution = backup.manifest, model.steps_per_execution
    if set(manifest["extras"]) != set(extras):
        raise ConfigError(
            "The backup holds other `extras` than this callback was given, or states of other "
            "callbacks than there are; nothing was restored. "
            f"Expected: {sorted(manifest['extras'])}. Received: extras={sorted(extras)}"
        )
    if manifest["step"] % execution:
        raise ConfigError(
            "The backup was made at a step that is no multiple of `steps_per_execution`. Compile "
            "the model as in "
            "the interrupted run, or delete the backup to start anew. "
            f"Received: steps_per_execution={execution}, step={manifest['step']}"
        )


def restore_variables(backup: Backup, model: Any, extras: Mapping[str, HasState]) -> frozenset[int]:
    """Assigns weights, optimizer, seeds and further states: all, or none if one does not fit.

    Args:
        backup: A whole backup.
        model: The model in `fit`, built; its optimizer is built if it is not.
        extras: Further states by name.

    Returns:
        Identities of the variables that were assigned.

    Raises:
        ConfigError: The model is not built, or the backup does not fit.
    """
    if not training_state.is_built(model):
        raise ConfigError(
            "The backup cannot be restored into a model that is not built. Build it by calling it "
            "on a batch "
            f"before `fit`. Received: model={model.name!r}"
        )
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    expected = [e for e in backup.manifest["variables"] if not e["key"].startswith("metrics/")]
    has_random = any(entry["key"].startswith("random/") for entry in expected)
    if has_random:
        training_state.ensure_global_seed_generator()
    found = training_state.training_variables(model, metrics=False)
    found = [entry for entry in found if has_random or entry.section != "random"]
    _check_fit(backup, expected, found)
    states = {name: _extra_state(backup, name) for name in extras}
    _assign(backup, found)
    for name, extra in extras.items():
        extra.set_state(states[name])
    return frozenset(id(entry.variable) for entry in found)


def restore_metrics(backup: Backup, model: Any) -> None:
    """Assigns what the metrics had summed up.

    Args:
        backup: A whole backup; one made between epochs holds no metrics, and nothing is done.
        model: The model in `fit`, with built metrics.

    Raises:
        ConfigError: The metrics are not those of the backup.
    """
    if not backup.manifest["step"]:
        return
    expected = [e for e in backup.manifest["variables"] if e["key"].startswith("metrics/")]
    listed = training_state.training_variables(model, metrics=True)
    found = [entry for entry in listed if entry.section == "metrics"]
    _check_fit(backup, expected, found)
    _assign(backup, found)


def restore_history(backup: Backup, model: Any) -> None:
    """Puts the epochs before the interruption into the model's history.

    Args:
        backup: A whole backup.
        model: The model in `fit`.
    """
    history = getattr(model, "history", None)
    if history is not None:
        saved = backup.manifest["history"]
        history.epoch = list(saved["epoch"])
        history.history = {name: list(values) for name, values in saved["logs"].items()}


def history_of(
    model: Any, logs: Mapping[str, Any] | None = None, epoch: int = -1
) -> dict[str, Any]:
    """Reads the model's history as JSON values.

    Args:
        model: The model in `fit`.
        logs: Logs of the epoch that just ended: `History` stands last in the list of callbacks and
            has not recorded them yet.
        epoch: That epoch.

    Returns:
        `"epoch"`, the numbers of the epochs, and `"logs"`, a list for each name.
    """
    history = getattr(model, "history", None)
    epochs = list(getattr(history, "epoch", None) or [])
    lists = {name: list(values) for name, values in getattr(history, "history", {}).items()}
    if logs is not None and epoch not in epochs:
        epochs.append(epoch)
        for name, value in logs.items():
            lists.setdefault(name, []).append(value)
    content: dict[str, Any] = json.loads(
        json.dumps({"epoch": epochs, "logs": lists}, default=_as_number)
    )
    return content


def logs_of(model: Any) -> dict[str, Any]:
    """What a training step would log now: results of the metrics, and the guard's figures.

    Args:
        model: The model in `fit`.

    Returns:
        Scalars by name.
    """
    logs: dict[str, Any] = model.get_metrics_result()
    figures = [name for name in PRECISION_LOGS if hasattr(model.optimizer, name)]
    if skip_causes(model) is None:
        return logs
    return {**{name: getattr(model.optimizer, name) for name in figures}, **logs}


def changed_settings(backup: Backup, model: Any) -> list[str]:
    """Says which settings of the optimizer are not those of the interrupted run.

    Args:
        backup: A whole backup.
        model: The model in `fit`.

    Returns:
        One sentence each, naming the setting.
    """
    present = training_state.optimizer_description(model.optimizer)
    return _changes(backup.manifest["optimizer"], present, "optimizer")


def scalars_of(optimizer: Any) -> list[str]:
    """The optimizer's scalar variables (learning rate, scale, counters), as hexadecimal text.

    Args:
        optimizer: A Keras optimizer, or None.
    """
    variables = [] if optimizer is None else optimizer.variables
    return [training_state.read_value(v).tobytes().hex() for v in variables if not len(v.shape)]


def _arrays(
    variables: list[StateVariable], states: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    for entry in variables:
        yield entry.key, training_state.read_value(entry.variable)
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, np.ndarray):
                yield f"extras/{name}/{key}", value


def _without_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}


def _extra_state(backup: Backup, name: str) -> dict[str, Any]:
    prefix = f"extras/{name}/"
    keys = [e["key"] for e in backup.manifest["arrays"] if e["key"].startswith(prefix)]
    arrays = {key.removeprefix(prefix): array for key, array in backup.arrays(keys)}
    return {**backup.manifest["extras"][name], **arrays}


def _check_fit(
    backup: Backup, expected: list[Mapping[str, Any]], found: list[StateVariable]
) -> None:
    is_of_another = other_back_end.is_of_another(backup)
    if is_of_another:
        expected = other_back_end.as_here(expected, found)
    training_state.check_fit(expected, found, str(backup.path))
    if is_of_another:
        for entry, array in _arrays_for(backup, found):
            other_back_end.converted(array, entry)  # raises before anything is assigned


def _assign(backup: Backup, found: list[StateVariable]) -> None:
    for entry, array in _arrays_for(backup, found):
        entry.variable.assign(other_back_end.converted(array, entry))


def _arrays_for(
    backup: Backup, found: list[StateVariable]
) -> Iterator[tuple[StateVariable, np.ndarray]]:
    entries = {entry.key: entry for entry in found}
    for key, array in backup.arrays(entries):
        yield entries[key], array


def _changes(saved: Any, present: Any, path: str) -> list[str]:
    if isinstance(saved, dict) and isinstance(present, dict):
        keys = sorted(saved.keys() | present.keys())
        nested = [_changes(saved.get(key), present.get(key), f"{path}.{key}") for key in keys]
        return [line for lines in nested for line in lines]
    return [] if saved == present else [f"{path}: {saved!r} is now {present!r}"]


def _as_number(value: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(value)).tolist()
