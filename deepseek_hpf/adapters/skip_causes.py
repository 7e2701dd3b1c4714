"""Why steps were skipped, counted on the device, so that the host need look only now and then."""

from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

FLOOR_RUN = 10
"""Skips in a row with the scale on its floor, in steps, after which the scale is not the remedy."""


class SkipCauses(keras.metrics.Metric):
    """Counts the causes of skipped steps.

    A metric, because a metric's variables are what `fit` carries through a compiled step on every
    back end, and what each replica may write on its own. It shows nothing in logs, and no reset
    clears it.

    Its variables are float32 scalars, in steps (times replicas, for those that saw the cause):

    - `bad_inputs`: a NaN or inf was in the inputs, targets or sample weights.
    - `bad_losses`: the inputs were finite, the loss or a metric was not.
    - `floor_runs`: both were finite, and the scale had been on its floor for at least
      `FLOOR_RUN` skips in a row.
    """

    def __init__(self) -> None:
        super().__init__(name="skip_causes", dtype="float32")
        self.bad_inputs = self.add_variable((), "zeros", name="bad_inputs")
        self.bad_losses = self.add_variable((), "zeros", name="bad_losses")
        self.floor_runs = self.add_variable((), "zeros", name="floor_runs")

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the guard writes the counters."""

    def result(self) -> dict[str, Any]:
        """Returns no entries, so that nothing of this shows in logs."""
        return {}

    def reset_state(self) -> None:
        """Keeps the counters: they count over the whole training."""


def find_causes(
    data: Any, metrics_before: list[Any], metrics_after: list[Any], floor_run: Any
) -> list[Any]:
    """Says which of the three causes a skipped step had.

    NaN or inf in the data makes every gradient non-finite at any scale, so it is looked for first.
    Where the data is finite, a loss that is not has overflowed in the forward pass or is undefined;
    the scale multiplies the loss only afterwards and is no remedy either. What is left is an
    overflow of the scaled gradients, which backing off does remedy, until the floor is reached.

    Args:
        data: The batch: a structure of tensors, with None where there is none.
        metrics_before: Values of the metric variables before the step.
        metrics_after: The same, as the skipped step left them.
        floor_run: Scalar, skips in a row with the scale on the floor.

    Returns:
        Increments, float32 scalars, in the order of `SkipCauses.variables`; at most one is 1.
    """
    bad_inputs = ops.logical_not(_all_finite(keras.tree.flatten(data)))
    was_finite = _all_finite(metrics_before)
    bad_loss = ops.logical_and(was_finite, ops.logical_not(_all_finite(metrics_after)))
    bad_loss = ops.logical_and(bad_loss, ops.logical_not(bad_inputs))
    neither = ops.logical_not(ops.logical_or(bad_inputs, bad_loss))
    on_floor = ops.logical_and(neither, ops.greater_equal(floor_run, FLOOR_RUN))
    return [ops.cast(flag, "float32") for flag in (bad_inputs, bad_loss, on_floor)]


def protecting_optimizer(model: keras.Model) -> LossScaleOptimizer | None:
    """Returns the model's optimizer if it is one that skips steps and counts them, else None."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer if isinstance(optimizer, LossScaleOptimizer) else None


def _all_finite(values: list[Any]) -> Any:
    checks = [ops.all(ops.isfinite(value)) for value in values if _is_float(value)]
    return ops.all(ops.stack(checks)) if checks else ops.convert_to_tensor(True)


def _is_float(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(dtype)
    )
