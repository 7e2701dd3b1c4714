"""What a guarded training step returns as logs, and what an epoch without any applied step logs."""

import math
from typing import Any

import keras
from keras import ops

from deepseek_hpf.adapters.running_fit import local_of_fit

PRECISION_LOGS = ("clipped_steps", "dynamic_scale", "gradient_norm", "skipped_steps")
"""Variables of the optimizer that appear in the logs of training, under these names."""


def with_precision(logs: Any, values: dict[str, Any]) -> Any:
    """Adds the optimizer's figures to a step's logs. A metric of the user's of the same name stays.

    Args:
        logs: What the step returned; other than a dict it is returned as it is.
        values: Figure by name.

    Returns:
        A new dict.
    """
    return {**values, **logs} if isinstance(logs, dict) else logs


def without_precision(logs: dict[str, Any], metrics: set[str]) -> dict[str, Any]:
    """Takes the optimizer's figures out of a step's logs.

    Args:
        logs: Logs of a guarded step.
        metrics: Names of the model's metrics; those stay.

    Returns:
        A new dict.
    """
    return {k: v for k, v in logs.items() if k in metrics or k not in PRECISION_LOGS}


def merged(logs: dict[str, Any], results: dict[str, Any], state: list[Any]) -> dict[str, Any]:
    """Returns the logs of a skipped step: the metrics over the steps that were applied.

    As long as none was, there is nothing to show but the skipped step's own loss and metrics. (NaN
    would end a training with `TerminateOnNaN` at a first step that only overflowed.) What
    is no metric's result, in a training step of the user's own, stays as well.

    Args:
        logs: The skipped step's own logs.
        results: The metrics' results after their state was put back.
        state: Values of the metrics' variables after their state was put back.

    Returns:
        Tensors under the names of `logs`, of the dtypes they have there.
    """
    own = {name: ops.convert_to_tensor(value) for name, value in logs.items()}
    empty = _all_zero(state)
    return {
        name: ops.where(empty, value, ops.cast(results[name], value.dtype))
        if name in results
        else value
        for name, value in own.items()
    }


def epoch_logs(model: keras.Model, logs: dict[str, Any], state: list[Any]) -> dict[str, Any]:
    """Returns the logs of an epoch whose last step was skipped: NaN if no step of it was applied.

    Keras's metrics are 0.0 before their first update, and a loss of 0.0 is the best there is for
    whoever compares. NaN is less than nothing; but Keras's callbacks take their first value
    whatever it is, and NaN would stay the best for ever. So the callbacks of the running `fit` that
    compare, and have seen nothing yet, are given the worst value to begin with.

    Args:
        model: The model being trained.
        logs: What Keras would log.
        state: Values of the metrics' variables at the end of the epoch.

    Returns:
        `logs`, or a new dict.
    """
    if not bool(_all_zero(state)):
        return logs
    logs = {k: v if k in PRECISION_LOGS else math.nan for k, v in logs.items()}
    for callback in _running_callbacks(model):
        if callback.monitor in logs and callback.best is None:
            _expect_the_worst(callback)
    return logs


def _all_zero(values: list[Any]) -> Any:
    checks = [ops.all(ops.equal(value, ops.zeros_like(value))) for value in values]
    return ops.all(ops.stack(checks)) if checks else ops.convert_to_tensor(True)


def _running_callbacks(model: keras.Model) -> list[Any]:
    """Finds the comparing callbacks of the `fit` that is being executed."""
    running = local_of_fit(model, "callbacks")
    if not isinstance(running, keras.callbacks.CallbackList):
        return []
    return [c for c in running.callbacks if hasattr(c, "monitor") and hasattr(c, "best")]


def _expect_the_worst(callback: Any) -> None:
    if callback.monitor_op is None:
        callback._set_monitor_op()
    less = bool(callback.monitor_op(0.0, 1.0))
    callback.best = math.inf if less else -math.inf
