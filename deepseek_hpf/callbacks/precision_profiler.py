"""`PrecisionProfiler`: profiles a model now and then while `fit` trains it."""

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.profiler.findings import Census
from deepseek_hpf.profiler.profile import profile
from deepseek_hpf.profiler.report import ProfileReport

logger = logging.getLogger(__name__)
_STATE = ("trainable", "non_trainable", "optimizer", "metrics")


class PrecisionProfiler(keras.callbacks.Callback):
    """Profiles a model on every `every`-th training batch, the first one included.

    The batch is taken out of the stream, profiled on, and handed on to the step, so the training is
    bit for bit what it is without the callback; a profiled step takes as long as `profile` does.
    Steps count on over epochs and further calls of `fit`; with `steps_per_execution` the weights
    are those at the start of the execution. A profile that fails is a warning in the log, and the
    training goes on.

    Args:
        every: Steps from one profile to the next.
        log_dir: Folder for TensorBoard's events, and for `profile-STEP.json`; None to keep the
            reports only.
        ranges: Whether to measure ranges, which takes most of the time.
        census: Whether to count the operations of the compiled step, which traces it anew (and
            compiles it, under JAX): once, and again when another callback has set another step.

    Raises:
        ConfigError: `every` is not a positive integer; or `log_dir` is given and the package
            tensorboard is not installed.

    Attributes:
        reports: The profiles so far, by step.

    Example:
        >>> import numpy as np, keras
        >>> from deepseek_hpf.callbacks import PrecisionProfiler
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> profiler = PrecisionProfiler(every=2, census=False)
        >>> x, y = np.ones((8, 4)), np.ones((8, 1))
        >>> _ = model.fit(x, y, batch_size=2, verbose=0, callbacks=[profiler])
        >>> list(profiler.reports)
        [0, 2]
    """

    def __init__(
        self,
        every: int = 1000,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        ranges: bool = True,
        census: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ConfigError(f"`every` must be a positive integer. Received: every={shown(every)}")
        if log_dir is not None:
            import_extra("tensorboard", "tensorboard")
        self.every = every
        self.log_dir = None if log_dir is None else Path(log_dir)
        self.reports: dict[int, ProfileReport] = {}
        self._ranges, self._census = ranges, census
        # The compiled function that was counted last: the same one has the same operations.
        self._counted: tuple[Callable[..., Any] | None, Census] = (None, Census())
        self._step = 0
        self._replaced: tuple[Any, Any] | None = None

    def set_model(self, model: keras.Model) -> None:
        """Keeps the model.

        Args:
            model: The model.
        """
        super().set_model(model)
        self._trained = model  # reading Keras's `model` has JAX's `fit` hand its values back

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts itself between the stream of batches and the step."""
        self._release()
        self._take_over()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stays in between where another callback has set another step."""
        self._take_over()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the model its step back."""
        self._release()

    def _is_due(self) -> bool:
        """Whether one of the steps that the next call runs is an `every`-th one."""
        return -self._step % self.every < self._trained.steps_per_execution

    def _take_over(self) -> None:
        function = self._trained.train_function
        if function is None or getattr(function, "profiles_for", None) is self:
            return
        profiling = self._profiling(function)
        self._replaced = (profiling, function)
        self._trained.train_function = profiling

    def _release(self) -> None:
        if self._replaced is not None and self._trained.train_function is self._replaced[0]:
            self._trained.train_function = self._replaced[1]
        self._replaced = None

    def _profiling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def profiling_function(*arguments: Any) -> Any:
            *state, stream = arguments  # JAX's takes its state first
            step, steps = self._step, self._trained.steps_per_execution
            is_due = self._is_due()
            self._step += steps
            if not is_due:
                return function(*arguments)
            # PyTorch's takes a list of batches, the others draw them.
            batches = stream if isinstance(stream, list) else list(itertools.islice(stream, steps))
            if not batches:
                return function(*arguments)  # ends as at the end of the data
            with values_in_fit(self._trained, state):
                for offset, batch in enumerate(batches):
                    if (step + offset) % self.every == 0:
                        self._look(step + offset, batch, function)
            return function(*state, batches if isinstance(stream, list) else iter(batches))

        profiling_function.profiles_for = self  # type: ignore[attr-defined]
        return profiling_function

    def _look(self, step: int, batch: Any, function: Callable[..., Any]) -> None:
        counts = self._census and self._counted[0] is not function
        try:
            report = profile(self._trained, batch_parts(batch), ranges=self._ranges, census=counts)
        except ConfigError as error:
            logger.warning("No profile of step %d: %s", step, error)
            return
        if counts:
            self._counted = (function, report.census)
        report = dataclasses.replace(report, census=self._counted[1])
        self.reports[step] = report
        if self.log_dir is not None:
            from deepseek_hpf.profiler.tensorboard_log import write_events

            write_events(report, self.log_dir, step)
            report.to_json(self.log_dir / f"profile-{step}.json")


def batch_parts(batch: Any) -> tuple[Any, ...]:
    """`(x, y)` or `(x, y, sample_weight)`; TensorFlow's empty optionals become None."""
    plain = keras.tree.map_structure(
        lambda each: None if type(each).__name__.startswith("_Optional") else each, batch
    )
    x, y, weight = keras.utils.unpack_x_y_sample_weight(plain)
    return (x, y) if weight is None else (x, y, weight)


@contextlib.contextmanager
def values_in_fit(model: keras.Model, state: list[Any]) -> Iterator[None]:
    """Gives the variables the values that JAX's `fit` holds for them, for as long as this lasts."""
    if not state:
        yield
        return
    held, synced = getattr(model, "_jax_state", None), model._jax_state_synced
    hand_back(model, state)
    try:
        yield
    finally:
        model._purge_model_variables(**{f"{name}_variables": True for name in _STATE})
        model._jax_state, model._jax_state_synced = held, synced


def hand_back(model: keras.Model, state: list[Any]) -> None:
    """Gives the variables the values that JAX's `fit` holds for them.

    Args:
        model: The model.
        state: What `fit` passes to the training function before the data; empty elsewhere.
    """
    if state:
        model._jax_state = {
            f"{name}_variables": values for name, values in zip(_STATE, state[0], strict=True)
        }
        model._jax_state_synced = False
        model.jax_state_sync()
