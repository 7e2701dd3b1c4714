"""What a window of steps says, read from the device: gradients by layer, the loss, the time."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from deepseek_hpf.adapters.current_value import current_value
from deepseek_hpf.adapters.skip_causes import protecting_optimizer
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.optimizers.gradient_watch import STEPS, WINDOWS, GradientWatch, Window
from deepseek_hpf.scheduling.telemetry import GradientStatistics

Layers = dict[str, dict[str, GradientStatistics]]


class Skips(NamedTuple):
    """What the optimizer says of skipped steps.

    Args:
        total: Steps skipped, ever.
        in_a_row: Steps skipped in a row, up to the last one.
        in_a_row_on_floor: Of these, those with the loss scale on its floor.
        scale: The loss scale of the next step; None without scaling.
    """

    total: int
    in_a_row: int
    in_a_row_on_floor: int
    scale: float | None


class Reading:
    """Reads a model that is being trained, between two steps.

    Args:
        model: The model, with a `LossScaleOptimizer`.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._owners: dict[int, tuple[str, str, keras.Layer]] = {}

    def watch(self, every: int, sample_every: int) -> bool:
        """Has the optimizer measure gradients, unless it does already.

        Args:
            every: Steps of a window.
            sample_every: Of how many steps one is measured.

        Returns:
            Whether it did not yet: what was compiled before is of no use any more.
        """
        optimizer = self.optimizer
        present = optimizer.watch
        if isinstance(present, GradientWatch) and present.compute_dtype_of == self._compute_dtype:
            return False
        optimizer.watch_gradients(every, sample_every, self._compute_dtype)
        if self._model.train_function is not None:
            self._model.make_train_function(force=True)
        return True

    def steps(self) -> int:
        """Steps trained so far, skipped ones included; waits for the device."""
        watch = self.optimizer.watch
        if not isinstance(watch, GradientWatch) or not watch.variables:
            return 0
        counts = np.asarray(self.value(watch.variables[2]))[0]
        return int(counts[WINDOWS]) * watch.every + int(counts[STEPS])

    def skipped(self) -> int:
        """Steps skipped so far; waits for the device. The one scalar that is read at each step."""
        optimizer = self.optimizer
        return int(self.value(optimizer.skipped_steps)) if optimizer.built else 0

    def skips(self) -> Skips:
        """All that is known of the last skipped step."""
        optimizer = self.optimizer
        return Skips(
            total=self.skipped(),
            in_a_row=int(self.value(optimizer.consecutive_skips)),
            in_a_row_on_floor=int(self.value(optimizer.consecutive_floor_skips)),
            scale=self.scale(),
        )

    def scale(self) -> float | None:
        """The loss scale of the next step; None without scaling."""
        optimizer = self.optimizer
        return float(self.value(optimizer.dynamic_scale)) if optimizer.scales_loss else None

    def window(self) -> tuple[Window, Layers] | None:
        """The last complete window, as a whole and by the path of a layer; None before the first.

        Returns:
            The window, and layer path to name of a variable to its statistics.
        """
        watch = self.optimizer.watch
        window = watch.last_window(self.value) if isinstance(watch, GradientWatch) else None
        if window is None:
            return None
        layers: Layers = {}
        for variable, figures in zip(
            self.optimizer._trainable_variables, window.variables, strict=True
        ):
            path, name, _ = self._owner(variable)
            layers.setdefault(path, {})[name] = figures
        return window, layers

    def loss(self) -> tuple[float, float]:
        """Sum and weight of the losses of the epoch so far; zeros where Keras keeps none."""
        tracker = self._model._loss_tracker
        if tracker is None:
            return 0.0, 0.0
        return float(self.value(tracker.total)), float(self.value(tracker.count))

    def value(self, variable: Any) -> Any:
        """A variable of the optimizer or of a metric as it is now."""
        return current_value(self._model, variable)

    @property
    def optimizer(self) -> Any:
        """The model's `LossScaleOptimizer`; None before a policy has been applied."""
        return protecting_optimizer(self._model)

    def _compute_dtype(self, variable: keras.Variable) -> str:
        """Dtype in which the layer of a variable computes; asked when a step is traced."""
        return str(self._owner(variable)[2].compute_dtype)

    def _owner(self, variable: keras.Variable) -> tuple[str, str, keras.Layer]:
        if id(variable) not in self._owners:  # made since the last look
            self._owners = _owners(self._model)
        return self._owners[id(variable)]


def _owners(model: keras.Model) -> dict[int, tuple[str, str, keras.Layer]]:
    """`id(variable)` to path of its layer, a name that is unique there, and the layer."""
    owners = {}
    for path, layer in [("", model), *((w.path, w.layer) for w in walk(model))]:
        names: dict[str, int] = {}
        for variable in [*layer._trainable_variables, *layer._non_trainable_variables]:
            count = names[variable.name] = names.get(variable.name, 0) + 1
            name = variable.name if count == 1 else f"{variable.name}:{count}"
            owners[id(variable)] = (path, name, layer)
    return owners


class MeanLoss:
    """The mean loss of a window, from what Keras sums up over an epoch."""

    def __init__(self) -> None:
        self._carried = (0.0, 0.0)
        self._last = (0.0, 0.0)

    def begin_epoch(self) -> None:
        """Keras has begun to sum up anew."""
        self._last = (0.0, 0.0)

    def add(self, now: tuple[float, float]) -> None:
        """Takes in what Keras has summed up since the last call.

        Args:
            now: Sum and weight of the losses of the epoch so far.
        """
        if now[1] < self._last[1]:
            self.begin_epoch()
        (total, weight), (last, last_weight) = self._carried, self._last
        self._carried = (total + now[0] - last, weight + now[1] - last_weight)
        self._last = now

    def of_window(self, now: tuple[float, float]) -> float | None:
        """Ends a window.

        Args:
            now: Sum and weight of the losses of the epoch so far.

        Returns:
            The mean loss of the steps that were not skipped; None where there was none.
        """
        self.add(now)
        total, weight = self._carried
        self._carried = (0.0, 0.0)
        return total / weight if weight > 0.0 else None

    def get_state(self) -> list[float]:
        """Returns JSON values."""
        return [*self._carried, *self._last]

    def set_state(self, state: list[float]) -> None:
        """Goes on from what `get_state` returned."""
        carried, weight, last, last_weight = state
        self._carried, self._last = (carried, weight), (last, last_weight)


class Stopwatch:
    """Adds up the time of steps; what is done between them does not count."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._started: float | None = None

    def go(self) -> None:
        """Starts to count, unless it does."""
        if self._started is None:
            self._started = time.perf_counter()

    def halt(self) -> None:
        """Stops to count."""
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def take(self) -> float:
        """Returns the seconds counted since the last call."""
        running = self._started is not None
        self.halt()
        seconds, self._seconds = self._seconds, 0.0
        if running:
            self.go()
        return seconds


def gradient_norm(layers: Mapping[str, Mapping[str, GradientStatistics]]) -> float:
    """L2 norm of the whole gradient, mean over the steps of a window."""
    parts = (part for layer in layers.values() for part in layer.values())
    return GradientStatistics.combined(parts).gradient_norm
