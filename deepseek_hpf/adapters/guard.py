"""The guard around a model's training step: a skipped step leaves nothing behind.

The optimizer keeps weights and slots out of a skipped step. But before it skips, the forward pass
has moved statistics, the states of stateful RNNs and random seeds, and the metrics have counted a
loss that may be NaN. The guard wraps `train_step` of the one model it is given, and puts all of
that back inside the compiled step. A step that is not skipped costs a comparison and, of the state
that the forward pass writes, a copy.

NaN in a batch makes the gradients non-finite at any scale. The optimizer cannot know that and backs
off as from an overflow: at most to `min_scale`, from where it grows again.
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deepseek_hpf.adapters.forward_state import forward_state, metric_state
from deepseek_hpf.adapters.skip_causes import SkipCauses, find_causes, protecting_optimizer
from deepseek_hpf.adapters.step_logs import (
    PRECISION_LOGS,
    epoch_logs,
    merged,
    with_precision,
    without_precision,
)
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

_CAUSES = "_hpf_skip_causes"


def install_guard(model: keras.Model) -> Callable[[], None]:
    """Wraps the training step of this model so that skipped steps leave nothing behind.

    After a step that the model's `LossScaleOptimizer` skipped, what the forward pass wrote (see
    `forward_state`) and the metrics are bit-equal to before the step. The logs of training gain
    `dynamic_scale`, `skipped_steps`, `gradient_norm` and `clipped_steps`; they leave skipped steps
    out, and an epoch whose every step was skipped logs NaN for loss and metrics. Evaluation
    is not touched. `train_on_batch` returns the figures with `return_dict=True` only.

    With another optimizer the step is what it was. Whatever `train_step` the model has is wrapped,
    one of a subclass included; what such a step logs that is no metric's result is left as it is.
    Several calls install one guard.

    Args:
        model: A model, compiled or not, built or not. It may be compiled again later.

    Returns:
        A function without arguments that takes the guard off; calling it again does nothing.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> uninstall = install_guard(model)
        >>> "train_step" in vars(model)
        True
        >>> uninstall()
        >>> "train_step" in vars(model)
        False
    """
    if skip_causes(model) is not None:
        return lambda: None
    backend = importlib.import_module(f"deepseek_hpf.adapters.guard_{keras.backend.backend()}")
    with backend.scope(model):
        causes = SkipCauses()
    threaded = keras.backend.backend() == "jax"  # only there state has to pass through the step
    step = backend.guard_step if threaded else _stateful_guard_step
    replaced = [
        _replace(model, "train_step", step(model, model.train_step, causes)),
        _replace(model, "train_on_batch", _train_on_batch(model, causes)),
        _replace(model, "_get_metrics_result_or_logs", _epoch_logs(model, causes)),
    ]
    if threaded:
        model._metrics.append(causes)
    object.__setattr__(model, _CAUSES, causes)
    _remake_train_function(model)

    def uninstall() -> None:
        if skip_causes(model) is not causes:
            return
        if threaded:
            model._metrics.remove(causes)
        object.__delattr__(model, _CAUSES)
        for put_back in replaced:
            put_back()
        _remake_train_function(model)

    return uninstall


def skip_causes(model: keras.Model) -> SkipCauses | None:
    """Returns the counters of a guarded model, else None.

    Args:
        model: Any model.
    """
    return vars(model).get(_CAUSES)


class _StatefulGuard:
    """The guarded step where steps write variables: TensorFlow and PyTorch."""

    def __init__(self, model: keras.Model, step: Any, causes: SkipCauses):
        self.model = model
        self.step = step
        self.causes = causes
        self.backend: Any = importlib.import_module(
            f"deepseek_hpf.adapters.guard_{keras.backend.backend()}"
        )
        self._cached: tuple[Any, list[Any], list[bool], list[Any], list[Any]] | None = None

    def run(self, data: Any) -> Any:
        """Runs one step and, if it was skipped, undoes what the optimizer did not keep out."""
        optimizer = _optimizer_at_work(self.model, self.causes)
        if optimizer is None:
            return self.step(data)
        built = self.backend.build(self.model, data)
        state, metrics = self._variables()
        before = self.backend.read(state), self.backend.read(metrics), self.backend.random_state()
        skips_before = self.backend.read([optimizer.skipped_steps])[0] if optimizer.built else 0
        logs = self.step(data)
        skips, floor_run, *figures = self.backend.read(
            [
                optimizer.skipped_steps,
                optimizer.consecutive_floor_skips,
                *(getattr(optimizer, name) for name in PRECISION_LOGS),
            ]
        )
        own = _tensors(logs)
        logs_now = self.backend.when(
            ops.greater(skips, skips_before),
            lambda: self._undo(data, own, state, metrics, before, floor_run),
            lambda: own,
        )
        if not built:
            self._retrace_if_grown(len(state), len(metrics))
        if not isinstance(logs, dict):
            return logs
        return with_precision({**logs, **logs_now}, dict(zip(PRECISION_LOGS, figures, strict=True)))

    def _undo(
        self,
        data: Any,
        own: dict[str, Any],
        state: list[Any],
        metrics: list[Any],
        before: tuple[list[Any], list[Any], Any],
        floor_run: Any,
    ) -> dict[str, Any]:
        after = self.backend.read(metrics)
        increments = find_causes(data, before[1], after, floor_run)
        counts = self.backend.read(self.causes.variables)
        self.backend.write(
            self.causes.variables,
            [ops.add(count, one) for count, one in zip(counts, increments, strict=True)],
        )
        self.backend.write(state, before[0])
        self.backend.write(metrics, before[1])
        self.backend.set_random_state(before[2])
        return merged(own, self.model.get_metrics_result(), before[1])

    def _variables(self) -> tuple[list[Any], list[Any]]:
        """Lists state and metrics afresh after `compile`, and when a layer is frozen or thawed."""
        if self._cached is not None:
            function, layers, trainable, state, metrics = self._cached
            same = function is not None and function is self.model.train_function
            if same and trainable == [layer.trainable for layer in layers]:
                return state, metrics
        layers = self.model._flatten_layers()
        trainable = [layer.trainable for layer in layers]
        state = [*forward_state(self.model), *self.backend.buffers(self.model)]
        metrics = metric_state(self.model)
        self._cached = self.model.train_function, layers, trainable, state, metrics
        return state, metrics

    def _retrace_if_grown(self, states: int, metrics: int) -> None:
        """Has the next step traced anew if this one made variables, which it then did not read."""
        self._cached = None
        state_now, metrics_now = self._variables()
        grown = (len(state_now), len(metrics_now)) != (states, metrics)
        if grown and self.model.train_function is not None:
            self.model.make_train_function(force=True)


def _stateful_guard_step(model: keras.Model, step: Any, causes: SkipCauses) -> Any:
    guard = _StatefulGuard(model, step, causes)

    def guarded_step(data: Any) -> Any:
        return guard.run(data)

    return guarded_step


def _train_on_batch(model: keras.Model, causes: SkipCauses) -> Any:
    """`train_on_batch` that returns a list, or a number, of what it always did."""
    train_on_batch = model.train_on_batch

    @functools.wraps(train_on_batch)
    def guarded_train_on_batch(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(train_on_batch).bind(*args, **kwargs)
        as_dict = bound.arguments.get("return_dict", False)
        if as_dict or _optimizer_at_work(model, causes) is None:
            return train_on_batch(*args, **kwargs)
        bound.arguments["return_dict"] = True
        logs = train_on_batch(*bound.args, **bound.kwargs)
        own = without_precision(logs, {metric.name for metric in model.metrics})
        return model._flatten_metrics_in_order(own)

    return guarded_train_on_batch


def _epoch_logs(model: keras.Model, causes: SkipCauses) -> Any:
    """The method by which `fit` and `evaluate` make the logs of an epoch."""
    results_or_logs = model._get_metrics_result_or_logs

    @functools.wraps(results_or_logs)
    def guarded_results_or_logs(logs: Any) -> Any:
        result = results_or_logs(logs)
        optimizer = _optimizer_at_work(model, causes)
        trained = isinstance(logs, dict) and set(PRECISION_LOGS) <= set(logs)
        if optimizer is None or not trained or not int(_host(optimizer.step_skipped)):
            return result
        counters = {id(variable) for variable in causes.variables}
        state = [_host(v) for v in metric_state(model) if id(v) not in counters]
        return epoch_logs(model, result, state)

    return guarded_results_or_logs


def _optimizer_at_work(model: keras.Model, causes: SkipCauses) -> LossScaleOptimizer | None:
    """The optimizer that skips, as long as the guard with these counters is installed."""
    return protecting_optimizer(model) if skip_causes(model) is causes else None


def _tensors(logs: Any) -> dict[str, Any]:
    if not isinstance(logs, dict):
        return {}
    return {
        name: ops.convert_to_tensor(value)
        for name, value in logs.items()
        if ops.is_tensor(value) or isinstance(value, int | float | keras.Variable)
    }


def _host(variable: Any) -> Any:
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))


def _replace(model: keras.Model, name: str, value: Any) -> Callable[[], None]:
    """Sets an attribute of the instance; returns what puts back the one before."""
    had, before = name in vars(model), vars(model).get(name)
    # Past Keras's and PyTorch's tracking, which is for layers, variables and modules.
    object.__setattr__(model, name, value)

    def put_back() -> None:
        if vars(model).get(name) is not value:
            return  # Wrapped once more by somebody else: what was set here only passes on now.
        if had:
            object.__setattr__(model, name, before)
        else:
            object.__delattr__(model, name)

    return put_back


def _remake_train_function(model: keras.Model) -> None:
    if getattr(model, "train_function", None) is not None:
        model.make_train_function(force=True)
