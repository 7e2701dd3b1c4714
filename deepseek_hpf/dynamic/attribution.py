"""Why a step was skipped: the loss scale, an activation, or the data; and at which layer."""

import logging
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.dynamic.blame import (
    Fault,
    Mark,
    backward_fault,
    first_fault,
    is_skipped,
    summed_fault,
)
from deepseek_hpf.dynamic.rerun import rerun
from deepseek_hpf.profiler.summing import is_float
from deepseek_hpf.scheduling.telemetry import Cause, Overflow

_logger = logging.getLogger(__name__)


def attribute(model: keras.Model, data: Any, *, step: int, scale: float | None) -> Overflow:
    """Finds out why a step was skipped, by running it again with a look at each layer.

    1. A batch with an inf or NaN in it is the cause itself, and no layer is to blame.
    2. The step is run eagerly under the loss scale of that time. If its gradients are finite now,
       what the update goes by may not be, such as their sum with those of the steps before under
       gradient accumulation; otherwise the cause is unknown.
    3. It is run with no loss scale. If its gradients are finite then, the scale was the cause, and
       the layer is the one whose gradient overflowed first. Otherwise a value overflowed at any
       scale; the layer is the one that made it.

    It is called between two steps, also of a running `fit`, while the model's state and seeds are
    those from which the skipped step began; nothing of the model changes. Nothing is raised: a step
    that cannot be run again has an unknown cause.

    Args:
        model: A compiled model that has been trained.
        data: The batch as `train_step` got it: see `KeptBatches`.
        step: Number of the skipped step, from 0.
        scale: Loss scale of that step; None without scaling.

    Returns:
        What was found.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.dynamic.attribution import attribute
        >>> head = keras.layers.Dense(1, kernel_initializer="ones", name="head", dtype="float16")
        >>> model = keras.Sequential([keras.Input((4,), dtype="float32"), head])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")
        >>> logs = model.train_on_batch(x, y)
        >>> found = attribute(model, (3e4 * x, y), step=1, scale=None)
        >>> found.cause, found.layer, found.phase
        ('activation', 'head', 'forward')
        >>> x[1] = np.nan
        >>> attribute(model, (x, y), step=2, scale=None).samples
        (1,)
    """
    try:
        if not _is_finite(data):
            samples = bad_samples(data)
            return Overflow(step=step, cause="data", scale=scale, samples=samples)
        return _attributed(model, data, step, scale)
    except Exception as error:  # a user's model may raise anything
        _logger.debug("Step %d cannot be run again: %s", step, error, exc_info=True)
        return Overflow(step=step, cause="unknown", scale=scale)


def _attributed(model: keras.Model, data: Any, step: int, scale: float | None) -> Overflow:
    replicas = rerun(model, data, scale or 1.0)
    scaled = _skipped(replicas)
    if scaled is None:
        fault = next(filter(None, map(summed_fault, replicas)), None)
        return _blamed("accumulation" if fault else "unknown", fault, step, scale)
    is_scaled = scale not in (None, 1.0)
    unscaled = _skipped(rerun(model, data, 1.0)) if is_scaled else scaled
    fault = first_fault(unscaled) if unscaled else backward_fault(scaled) or first_fault(scaled)
    return _blamed("activation" if unscaled else "loss_scale", fault, step, scale)


def _skipped(replicas: Sequence[list[Mark]]) -> list[Mark] | None:
    """What passed on the first replica whose gradients are not finite; None if all are."""
    return next((marks for marks in replicas if is_skipped(marks)), None)


def _blamed(cause: Cause, fault: Fault | None, step: int, scale: float | None) -> Overflow:
    return Overflow(
        step=step,
        cause=cause,
        scale=scale,
        layer=fault.layer if fault else None,
        phase=fault.phase if fault else None,
    )


def bad_samples(data: Any) -> tuple[int, ...]:
    """Looks for samples that are not finite.

    Args:
        data: A batch, of whatever structure; values per replica count on from one to the next.

    Returns:
        Their positions along the first axis, in order.
    """
    found: set[int] = set()
    for values in _float_leaves(data):
        start = 0
        for value in values:
            finite = ops.isfinite(value)
            axes = tuple(range(1, len(value.shape)))
            good = ops.convert_to_numpy(ops.all(finite, axis=axes) if axes else finite)
            found.update(start + i for i, is_good in enumerate(good.reshape(-1)) if not is_good)
            start += int(value.shape[0]) if value.shape else 0
    return tuple(sorted(found))


def _is_finite(data: Any) -> bool:
    flags = [ops.all(ops.isfinite(value)) for values in _float_leaves(data) for value in values]
    return all(bool(ops.convert_to_numpy(flag)) for flag in flags)


def _float_leaves(data: Any) -> list[Sequence[Any]]:
    """The float tensors of a batch, each with its parts on the replicas."""
    leaves: list[Sequence[Any]] = []
    for leaf in keras.tree.flatten(data):
        parts = getattr(leaf, "values", None)  # of one replica each, under `tf.distribute`
        values = parts if isinstance(parts, tuple) else (leaf,)
        if all(map(is_float, values)):
            leaves.append(values)
    return leaves
