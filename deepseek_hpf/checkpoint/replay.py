"""The first steps of a resumed epoch: batches are drawn and dropped, and nothing is trained.

`fit` reads `model.train_function` afresh at every step. While an epoch is replayed that attribute
is a function around the real one; the steps keep their numbers, so `steps_per_epoch`, progress bars
and callbacks that count stay right, and the logs of a dropped step are those of the moment of the
backup.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from deepseek_hpf.errors import ConfigError, PrecisionError


class Replay:
    """Stands between `fit` and the training function until the step of the backup is reached.

    Each step has to be announced by `expect` just before it, which a callback does in
    `on_train_batch_begin`: if the callback is gone (an exception, another `fit`), the training
        function is called as if this were not there.

    Args:
        model: The model in `fit`.
        step: Steps of this epoch that were trained before the backup.
        before_first_step: Called once with what the first step is given (an iterator; PyTorch: a
            batch), before anything is drawn or trained.
    """

    def __init__(
        self, model: Any, step: int, before_first_step: Callable[[Any], None] | None = None
    ):
        self.model = model
        self.step = step
        self.logs: Mapping[str, Any] = {}
        self._before_first_step = before_first_step
        self._expected = False
        self._dropped = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done before steps are trained as usual."""
        return self._before_first_step is None and not self._expected

    def install(self) -> None:
        """Puts the function in place of the model's, also if another has been put there since."""
        if not isinstance(self.model.train_function, _Replaying):
            self.model.train_function = _Replaying(self.model.train_function, self)

    def expect(self, batch: int) -> None:
        """Announces a step.

        Args:
            batch: Its number within the epoch, from 0.

        Raises:
            PrecisionError: The step before it was trained though it should have been dropped.
        """
        if self._expected:
            raise PrecisionError(
                "A batch that was trained on before the interruption was trained on again: another "
                "callback "
                "replaced `model.train_function` within `on_train_batch_begin`. Place "
                "`BackupAndRestore` last in "
                f"the list of callbacks. Received: step={batch - 1}"
            )
        self._expected = batch < self.step
        if self._expected or self._before_first_step is not None:
            self.install()

    def check_finished(self) -> None:
        """Called when the epoch ends.

        Raises:
            ConfigError: It ended before the step of the backup.
        """
        if self._dropped < self.step:
            raise self._too_short()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Runs or drops one step.

        Args:
            function: The training function.
            arguments: What `fit` gave it: the data last; on JAX the state first.

        Returns:
            What the training function returns, or the logs of the backup with an unchanged state.
        """
        before, self._before_first_step = self._before_first_step, None
        if before is not None:
            before(arguments[-1])
            # What was restored may have brought the function of another plan.
            present = self.model.train_function
            function = present.function if isinstance(present, _Replaying) else present
        if not self._expected:
            return function(*arguments)
        self._expected = False
        self._dropped += self.model.steps_per_execution
        if keras.backend.backend() != "torch":  # PyTorch's loop has drawn the batch already
            self._draw(arguments[-1])
        logs = dict(self.logs)
        return (logs, arguments[0]) if keras.backend.backend() == "jax" else logs

    def _draw(self, iterator: Any) -> None:
        for drawn in range(self.model.steps_per_execution):
            try:
                next(iterator)
            except StopIteration:
                if drawn:
                    return  # the last execution of an epoch may be short
                raise self._too_short() from None

    def _too_short(self) -> ConfigError:
        return ConfigError(
            "The data ran out before the step of the backup was reached: an epoch is shorter than "
            "it was in the "
            f"interrupted run. Give the same data and batch size. Received: step={self.step}"
        )


def remove_replay(model: Any) -> None:
    """Gives a model its own training function back, also after a `fit` that was interrupted."""
    while isinstance(model.train_function, _Replaying):
        model.train_function = model.train_function.function


class _Replaying:
    """A training function that asks its replay first."""

    def __init__(self, function: Callable[..., Any], replay: Replay):
        self.function = function
        self.replay = replay

    def __call__(self, *arguments: Any) -> Any:
        return self.replay.run(self.function, arguments)
