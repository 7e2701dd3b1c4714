"""What the optimizer sees of gradients and updates, gathered on the device, window by window.

Of every step the wrapper counts that it was taken or skipped; of every `sample_every`-th one it
measures each variable's gradient and update. Windows of `every` steps are kept on the device, the
running one and the last complete one, so that the host may read at any time and never writes.
Training does the same with a watch and without, bit by bit: what is measured goes nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras import ops

from deepseek_hpf.optimizers import variable_figures as figures
from deepseek_hpf.scheduling.telemetry import GradientStatistics

if TYPE_CHECKING:
    from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
    from deepseek_hpf.optimizers.step import Step

Tensor = Any
DtypeOf = Callable[[keras.Variable], str]

# Columns of the sums, one row a variable.
NORM, UNDERFLOW, UPDATE, WEIGHT, LOST, NONFINITE = range(6)
# The counts.
STEPS, MEASURED, UPDATES, UPDATES_MEASURED, SKIPPED, WINDOWS = range(6)
NAMES = ("watched_sums", "watched_maxima", "watched_counts")


@dataclass(frozen=True)
class Window:
    """A complete window.

    Args:
        number: Its number, from 1.
        steps: Steps that it covers.
        skipped: Steps of it that were skipped.
        variables: Statistics of each trainable variable, in the order of the optimizer.
    """

    number: int
    steps: int
    skipped: int
    variables: tuple[GradientStatistics, ...]


class Seen(NamedTuple):
    """What was measured before an update."""

    gradients: Tensor
    weights: Tensor
    pulled: Tensor
    moves: Tensor
    measured: Tensor
    updates: Tensor
    update_measured: Tensor


class NoWatch:
    """Measures nothing."""

    variables: Sequence[keras.Variable] = ()

    def build(self, optimizer: "LossScaleOptimizer", trained: Sequence[keras.Variable]) -> None:
        """Creates no variable."""

    def before_update(self, step: "Step", updates: Tensor) -> "Seen | None":
        """Returns None."""
        return None

    def after_update(self, step: "Step", seen: "Seen | None") -> None:
        """Does nothing."""

    def skipped(self, step: "Step") -> None:
        """Does nothing."""


class GradientWatch(NoWatch):
    """Measures gradients and updates.

    Args:
        every: Steps of a window.
        sample_every: Of how many steps one is measured; the first of each window is.
        compute_dtype_of: Variable to name of the dtype that its layer computes in, below whose
            smallest normal number a gradient underflows. Asked when a step is traced.
    """

    def __init__(self, every: int, sample_every: int, compute_dtype_of: DtypeOf):
        self.every = every
        self.sample_every = sample_every
        self.compute_dtype_of = compute_dtype_of
        self._rows: dict[Any, int] = {}
        self._elements: list[int] = []

    def build(self, optimizer: "LossScaleOptimizer", trained: Sequence[keras.Variable]) -> None:
        """Creates the variables in which windows are kept, among those of the optimizer.

        Args:
            optimizer: Whose they are.
            trained: The variables that the optimizer is built with.
        """
        self._rows = {optimizer._var_key(variable): i for i, variable in enumerate(trained)}
        self._elements = [int(np.prod(variable.shape)) for variable in trained]
        shapes = ((2, len(trained), 6), (2, len(trained)), (2, 6))
        self.variables = tuple(
            optimizer.add_variable(shape, "zeros", "float32", aggregation="none", name=name)
            for name, shape in zip(NAMES, shapes, strict=True)
        )

    def adopt(self, other: NoWatch) -> None:
        """Goes on with the variables of a watch of the same optimizer."""
        if isinstance(other, GradientWatch) and other.variables:
            self._rows, self._elements = other._rows, other._elements
            self.variables = other.variables

    def load(self, values: Sequence[Any]) -> None:
        """Goes on from the windows of a file, where it has any that fit.

        Args:
            values: One for each variable.
        """
        shapes = [tuple(value.shape) for value in values]
        if shapes == [tuple(variable.shape) for variable in self.variables]:
            for variable, value in zip(self.variables, values, strict=True):
                variable.assign(value)

    def before_update(self, step: "Step", updates: Tensor) -> "Seen | None":
        """Measures the gradients, and notes the weights where the update will be measured.

        Args:
            step: The step, finite.
            updates: Boolean scalar: the inner optimizer updates, and does not only accumulate.

        Returns:
            What `after_update` needs.
        """
        counts = ops.convert_to_tensor(self.variables[2])[0]
        measured = self._is_due(counts[STEPS])
        update_measured = ops.logical_and(updates, self._is_due(counts[UPDATES]))
        parts = step.trained
        gradients = figures.when(
            measured,
            lambda: figures.of_gradients(
                [(part.gradient, part.target) for part in parts],
                [self.compute_dtype_of(part.variable) for part in parts],
                step.optimizer.current_scale(),
            ),
            [((len(parts), 3), "float32")],
        )
        tensors = [(part.gradient, part.target) for part in parts]
        groups = figures.Groups(tensors)
        spec = figures.samples_spec(groups, [target for _, target in tensors])
        weights, pulled = figures.when(
            update_measured,
            lambda: [
                figures.samples(groups, [part.weights() for part in parts]),
                figures.pulled(groups, step.pulls()),
            ],
            [spec, (spec[0], "float32")],
        )
        moves = ops.not_equal(step.inner.learning_rate, 0.0)
        return Seen(gradients[0], weights, pulled, moves, measured, updates, update_measured)

    def after_update(self, step: "Step", seen: "Seen | None") -> None:
        """Measures the update, and adds the step to the window."""
        if seen is None:
            return
        parts = step.trained
        changes = figures.when(
            seen.update_measured,
            lambda: figures.of_updates(
                [(part.gradient, part.target) for part in parts],
                seen.weights,
                ops.multiply(seen.pulled, ops.cast(seen.moves, "float32")),
            ),
            [((len(parts), 3), "float32")],
        )
        figures_of_step = [seen.gradients[:, :2], changes[0], ops.zeros((len(parts), 1))]
        flags = [True, seen.measured, seen.updates, seen.update_measured, False]
        sums = ops.concatenate(figures_of_step, axis=1)
        self._advance(step, sums, seen.gradients[:, 2], flags)

    def skipped(self, step: "Step") -> None:
        """Counts what was not finite, and adds the step to the window."""
        counts = figures.nonfinite([(part.gradient, part.target) for part in step.trained])
        nothing = ops.zeros_like(counts)
        sums = ops.stack([*[nothing] * NONFINITE, counts], axis=1)
        self._advance(step, sums, nothing, [True, False, False, False, True])

    def _is_due(self, count: Tensor) -> Tensor:
        return ops.equal(ops.mod(count, float(self.sample_every)), 0.0)

    def _advance(self, step: "Step", sums: Tensor, maxima: Tensor, flags: Sequence[Tensor]) -> None:
        """Adds a step to the running window; a full one becomes the last complete one."""
        key = step.optimizer._var_key
        rows = [self._rows[key(part.variable)] for part in step.trained]
        own_sums, own_maxima, own_counts = map(ops.convert_to_tensor, self.variables)
        added = ops.stack([*(ops.cast(flag, "float32") for flag in flags), ops.zeros(())])
        counts = ops.add(own_counts[0], added)
        full = ops.greater_equal(counts[STEPS], float(self.every))
        last = ops.convert_to_tensor(np.eye(6, dtype="float32")[WINDOWS])
        closed = ops.add(counts, last)
        running = [
            ops.add(own_sums[0], figures.spread(rows, sums, len(self._rows))),
            ops.maximum(own_maxima[0], figures.spread(rows, maxima, len(self._rows))),
            counts,
        ]
        begun = [ops.zeros_like(running[0]), ops.zeros_like(running[1]), ops.multiply(closed, last)]
        ended = [running[0], running[1], closed]
        values = (own_sums, own_maxima, own_counts)
        for variable, value, now, new, old in zip(
            self.variables, values, running, begun, ended, strict=True
        ):
            kept = [ops.where(full, new, now), ops.where(full, old, value[1])]
            variable.assign(ops.stack(kept))

    def last_window(self, read: Callable[[keras.Variable], Any] | None = None) -> Window | None:
        """Reads the last complete window; waits for the device.

        Args:
            read: Variable to an array of its value now; by default its own. In the middle of
                `fit` under JAX the trainer holds the values.

        Returns:
            The window; None before the first one is complete.
        """
        if not self.variables:
            return None
        host = read or ops.convert_to_numpy
        sums, maxima, counts = (np.asarray(host(v), "float64")[1] for v in self.variables)
        if not counts[WINDOWS]:
            return None
        statistics = (
            _statistics(elements, row, float(largest), counts)
            for elements, row, largest in zip(self._elements, sums, maxima, strict=True)
        )
        return Window(
            int(counts[WINDOWS]), int(counts[STEPS]), int(counts[SKIPPED]), tuple(statistics)
        )


def _statistics(
    elements: int, row: np.ndarray, largest: float, counts: np.ndarray
) -> GradientStatistics:
    measured, updates = max(counts[MEASURED], 1.0), max(counts[UPDATES_MEASURED], 1.0)
    return GradientStatistics(
        elements=elements,
        gradient_norm=float(row[NORM] / measured),
        largest=largest,
        nonfinite=int(row[NONFINITE]),
        underflow=float(row[UNDERFLOW] / measured),
        update_norm=float(row[UPDATE] / updates),
        weight_norm=float(row[WEIGHT] / updates),
        lost_updates=float(row[LOST] / updates),
    )
