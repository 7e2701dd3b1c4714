"""Backups from which a killed run continues as if it had not been killed."""

import json
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from deepseek_hpf.adapters.running_fit import local_of_fit
from deepseek_hpf.checkpoint import other_back_end, run_backup, training_state
from deepseek_hpf.checkpoint.backup_store import Backup, BackupStore
from deepseek_hpf.checkpoint.data_order import ADVICE, order_problem
from deepseek_hpf.checkpoint.random_states import (
    RandomStates,
    capture_random_states,
    restore_random_states,
)
from deepseek_hpf.checkpoint.replay import Replay, remove_replay
from deepseek_hpf.checkpoint.training_state import HasState
from deepseek_hpf.errors import ConfigError

logger = logging.getLogger(__name__)

Logs = Mapping[str, Any] | None


@dataclass(slots=True)
class _Run:
    """Where the `fit` at hand stands."""

    resumed: Backup | None = None
    replay: Replay | None = None
    restored: frozenset[int] = frozenset()
    extras: dict[str, HasState] = field(default_factory=dict)
    is_first_epoch: bool = True
    epoch: int = 0
    step: int = 0
    steps_since_save: int = 0
    epoch_states: RandomStates = field(default_factory=dict)
    saved_at_epoch_end: str | None = None


class BackupAndRestore(keras.callbacks.Callback):
    """Keras's `BackupAndRestore` with what that leaves out: a resumed run ends with the same bits.

    A backup holds the weights, all variables of the optimizer (slots, masters, loss scale,
    counters), the states of the layers' seed generators and of `keras.random`'s own, those of
    Python's, NumPy's and PyTorch's global generators, the history, the epoch, the step, and within
    an epoch what the metrics have summed up. `DynamicPrecision` beside it has its state in it too,
    wherever it stands in the list; states of other callbacks (such as the patience of
    `EarlyStopping`) are not.

    Each backup is written whole into a new directory, forced to the disk and renamed into place,
    and only then is the one before it removed: a process killed at any moment, while it writes
    included, leaves a whole backup. It needs room for two. A damaged backup, or one of another
    model, is an error, never a silent start from scratch.

    Within an epoch, the batches trained on before are drawn and dropped: callbacks see these steps
    with their numbers and with the logs of the backup. So the order of the data has to be the same
    for an epoch in every process; the states of the global generators at the beginning of the epoch
    are restored to that end. Where the order is known not to be reproducible, one warning says so
    when training begins. On JAX and PyTorch those generators are set once more when the step is
    reached; under TensorFlow the input pipeline draws ahead in threads of its own, and Python's and
    NumPy's are left where replaying the epoch brought them.

    A backup that was made under another Keras back end is taken over as well, with a warning: the
    run goes on from the same numbers, and no longer ends with the same bits.

    Place it behind callbacks that change the training state. Under TensorFlow a model that is not
    built when `fit` begins is built from the data's specification and restored just before the
    first step.

    Args:
        backup_dir: Directory of the backups, on a mounted file system. One run at a time may use
            it.
        save_freq: `"epoch"`, or a number of steps. Steps are backed up as the next one begins, so
            that dispatch stays asynchronous; those that end an epoch, at its end.
        double_checkpoint: Keep the backup before the last as well, and fall back to it, with a
            warning, if the last is damaged.
        delete_checkpoint: Remove the backups when training has ended.
        extras: Further states of the run by name, objects with `get_state` and `set_state`
            (`deepseek_hpf.checkpoint.training_state.HasState`), such as a controller or a plan.

    Raises:
        ConfigError: An argument is invalid; when training begins: a backup is damaged, or does not
            fit the model, the optimizer or `steps_per_execution`.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> from deepseek_hpf.callbacks import BackupAndRestore
        >>> keras.utils.set_random_seed(0)
        >>> layers = [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
        >>> model = keras.Sequential(layers)
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")
        >>> backup = BackupAndRestore(tempfile.mkdtemp() + "/run", save_freq=10)
        >>> history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[backup])
        >>> history.epoch
        [0, 1]

    References:
        - [`keras.callbacks.BackupAndRestore`](https://keras.io/api/callbacks/backup_and_restore/)
        - `rename` replaces a name at once: POSIX.1-2017,
          https://pubs.opengroup.org/onlinepubs/9699919799/
    """

    def __init__(
        self,
        backup_dir: str | os.PathLike[str],
        save_freq: str | int = "epoch",
        double_checkpoint: bool = False,
        delete_checkpoint: bool = True,
        *,
        extras: Mapping[str, HasState] | None = None,
    ):
        super().__init__()
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise ConfigError(
                "Invalid value for argument `save_freq`. Expected either 'epoch' or a positive "
                "integer "
                f"number of steps. Received: save_freq={save_freq!r} (of type "
                f"{type(save_freq).__name__})"
            )
        self.store = BackupStore(backup_dir, keep=2 if double_checkpoint else 1)
        self.save_freq = save_freq
        self.double_checkpoint = double_checkpoint
        self.delete_checkpoint = delete_checkpoint
        self.extras = _checked_extras(extras)
        self._run = _Run()

    @property
    def backup_dir(self) -> str:
        """Directory of the backups."""
        return str(self.store.directory)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Finds the last backup, checks all of it, and restores it if the model is built."""
        self._run = _Run(extras={**_states_of_callbacks(self.model), **self.extras})
        remove_replay(self.model)
        self.store.clean()
        self.store.check_foreign()
        backup = self._run.resumed = self._load()
        if backup is None:
            return
        run_backup.check_run(backup, self.model, self._run.extras)
        if other_back_end.is_of_another(backup):
            warnings.warn(other_back_end.warning(backup), UserWarning, stacklevel=2)
        epoch, step = backup.manifest["epoch"], backup.manifest["step"]
        self.model._initial_epoch = epoch
        if training_state.is_built(self.model):
            try:
                self._restore(backup)
            except ConfigError as error:
                # A callback behind this one may yet give the model the optimizer that the backup
                # holds.
                logger.debug("The backup does not fit yet: %s", error)
        logger.info("Resuming at epoch %d, step %d, from %s.", epoch, step, backup.path)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Prepares the first epoch of a resumed run; notes where the global generators stand."""
        self._run.epoch, self._run.step = epoch, 0
        if self._run.is_first_epoch:
            self._run.is_first_epoch = False
            self._warn_about_order()
            if self._run.resumed is not None:
                self._begin_resumed_epoch(self._run.resumed)
        elif self._run.saved_at_epoch_end not in (None, self._small_state()):
            self._save(epoch, 0)  # a callback behind this one changed the learning rate or the logs
        self._run.saved_at_epoch_end = None
        self._run.epoch_states = capture_random_states()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Backs up the steps that were completed; within a replay, announces the step."""
        if self._run.replay is not None:
            self._continue_replay(self._run.replay, batch)
        self._run.steps_since_save += batch - self._run.step
        self._run.step = batch
        if self.save_freq != "epoch" and self._run.steps_since_save >= int(self.save_freq):
            self._save(self._run.epoch, batch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Backs up the epoch that was completed."""
        if self._run.replay is not None:
            self._run.replay.check_finished()
            self._end_replay()
        self._run.steps_since_save += self.model.steps_per_execution
        if self.save_freq == "epoch" or self._run.steps_since_save >= int(self.save_freq):
            self._save(epoch + 1, 0, logs)
            self._run.saved_at_epoch_end = self._small_state(logs, epoch)

    def on_train_end(self, logs: Logs = None) -> None:
        """Removes the backups, or brings the last up to date."""
        had_no_epoch = self._run.is_first_epoch
        if had_no_epoch and self._run.resumed is not None:
            if not self._is_restored():
                self._restore(self._run.resumed)
            run_backup.restore_history(self._run.resumed, self.model)
        self.model._initial_epoch = None
        if self.delete_checkpoint:
            self.store.delete()
        elif not had_no_epoch and self._run.saved_at_epoch_end != self._small_state():
            self._save(self._run.epoch + 1, 0)

    def _load(self) -> Backup | None:
        paths = self.store.paths()
        if not paths:
            return None
        try:
            return self.store.load(paths[-1])
        except ConfigError as error:
            if not self.double_checkpoint or len(paths) < 2:
                raise
            warnings.warn(
                f"Resuming from the backup before the last. {error}", UserWarning, stacklevel=2
            )
            return self.store.load(paths[-2])

    def _restore(self, backup: Backup) -> None:
        self._run.restored = run_backup.restore_variables(backup, self.model, self._run.extras)

    def _is_restored(self) -> bool:
        """Whether what was restored is still the run's: a swapped optimizer has other variables."""
        if not self._run.restored:
            return False
        found = training_state.training_variables(self.model, metrics=False)
        return {id(e.variable) for e in found if e.section != "random"} <= self._run.restored

    def _begin_resumed_epoch(self, backup: Backup) -> None:
        self.model._initial_epoch = None  # `fit` has read it; the next `fit` must not
        self._warn_about_settings(backup)
        step = backup.manifest["step"]
        is_built = training_state.is_built(self.model)
        is_ready = is_built and (not step or training_state.has_built_metrics(self.model))
        if step or not is_ready:
            before = None if is_ready else self._build_and_restore
            self._run.replay = Replay(self.model, step, before)
        if is_built and not self._is_restored():
            self._restore(backup)
        if is_ready:
            self._restore_metrics(backup)
        run_backup.restore_history(backup, self.model)
        restore_random_states(backup.manifest["random_at_epoch_begin"])

    def _build_and_restore(self, data: Any) -> None:
        """Under TensorFlow, makes what the first step would have made, then restores it."""
        specification = getattr(data, "element_spec", None)
        if specification is None or self._run.resumed is None:
            raise ConfigError(
                "The model or its metrics are not built, and the data does not say what to build "
                "them for. "
                f"Call the model on a batch before `fit`. Received: data of type "
                f"{type(data).__name__}"
            )
        self.model._symbolic_build(data_batch=specification)
        if not self._is_restored():
            self._restore(self._run.resumed)
        self._restore_metrics(self._run.resumed)

    def _restore_metrics(self, backup: Backup) -> None:
        run_backup.restore_metrics(backup, self.model)
        if self._run.replay is not None:
            self._run.replay.logs = run_backup.logs_of(self.model)

    def _continue_replay(self, replay: Replay, batch: int) -> None:
        replay.expect(batch)
        if batch <= replay.step:
            self._run.step = batch  # steps that are dropped do not count towards `save_freq`
        if batch == replay.step and batch and self._run.resumed is not None:
            restore_random_states(_states_at_step(self._run.resumed.manifest["random"]))
        if batch >= replay.step and replay.is_over:
            self._end_replay()

    def _end_replay(self) -> None:
        self._run.replay = None
        remove_replay(self.model)

    def _save(self, epoch: int, step: int, logs: Logs = None) -> None:
        run_backup.write_run(
            self.store,
            self.model,
            (epoch, step),
            history=run_backup.history_of(self.model, logs, epoch - 1),
            extras=self._run.extras,
            epoch_states=self._run.epoch_states,
        )
        self._run.steps_since_save = 0

    def _small_state(self, logs: Logs = None, epoch: int = -1) -> str:
        """What other callbacks change as an epoch ends: the history, the optimizer's scalars."""
        history = run_backup.history_of(self.model, logs, epoch)
        return json.dumps([history, run_backup.scalars_of(self.model.optimizer)])

    def _warn_about_order(self) -> None:
        iterator = local_of_fit(self.model, "epoch_iterator")
        problem = None if iterator is None else order_problem(iterator)
        if problem is not None:
            warnings.warn(
                f"A run resumed from a backup will not see its data in the same order: {problem}. "
                f"{ADVICE}",
                UserWarning,
                stacklevel=2,
            )

    def _warn_about_settings(self, backup: Backup) -> None:
        changes = run_backup.changed_settings(backup, self.model)
        if changes:
            warnings.warn(
                "The optimizer has other settings than in the backup, so the run will not end with "
                "the same "
                f"bits. {'; '.join(changes)}.",
                UserWarning,
                stacklevel=2,
            )


def _checked_extras(extras: Mapping[str, HasState] | None) -> dict[str, HasState]:
    checked = dict(extras or {})
    for name, extra in checked.items():
        if "/" in name or not isinstance(extra, HasState):
            raise ConfigError(
                "`extras` must map names without '/' to objects with `get_state` and `set_state`. "
                f"Received: extras[{name!r}] of type {type(extra).__name__}"
            )
    return checked


def _states_of_callbacks(model: keras.Model) -> dict[str, HasState]:
    """The callbacks of the running `fit` that ask to be backed up, by the name they give."""
    running = local_of_fit(model, "callbacks")
    beside = running.callbacks if isinstance(running, keras.callbacks.CallbackList) else []
    named = ((getattr(callback, "backup_name", None), callback) for callback in beside)
    return {name: each for name, each in named if name and isinstance(each, HasState)}


def _states_at_step(states: RandomStates) -> RandomStates:
    """What to set when the step of the backup is reached."""
    # TensorFlow's input pipeline draws ahead: how far it was then says nothing about now.
    if keras.backend.backend() == "tensorflow":
        return {"torch": states.get("torch")}
    return states
