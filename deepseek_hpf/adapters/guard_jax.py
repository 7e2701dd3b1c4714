"""The guarded training step on JAX: a choice between two states, no variable is written."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import keras

from deepseek_hpf.adapters.forward_state import forward_state
from deepseek_hpf.adapters.skip_causes import SkipCauses, find_causes, protecting_optimizer
from deepseek_hpf.adapters.step_logs import PRECISION_LOGS, merged, with_precision

State = tuple[list[Any], list[Any], list[Any], list[Any]]


def scope(model: keras.Model) -> Any:
    """Returns a context that does nothing: a variable is one array, however it is sharded."""
    return contextlib.nullcontext()


def guard_step(model: keras.Model, step: Any, causes: SkipCauses) -> Any:
    """Wraps a training step so that a skip returns the forward state and the metrics it was given.

    Args:
        model: The model whose step it is.
        step: `step(state, data) -> (logs, state)`, as `keras.Model.train_step` on JAX.
        causes: The counters; threaded through where `model.metrics` holds them.

    Returns:
        A function of the same signature.
    """

    def guarded_step(state: State, data: Any) -> tuple[Any, State]:
        optimizer = protecting_optimizer(model)
        if optimizer is None or causes not in model._metrics:
            return step(state, data)
        logs, new_state = step(state, data)
        trainable, forward, slots, metrics = new_state
        before = _by_variable(optimizer.variables, state[2])
        after = _by_variable(optimizer.variables, slots)
        skips = id(optimizer.skipped_steps)
        skipped = after[skips] > before[skips]
        written = {id(variable) for variable in forward_state(model)}
        forward = [
            jnp.where(skipped, old, new) if id(variable) in written else new
            for variable, old, new in zip(
                model.non_trainable_variables, state[1], forward, strict=True
            )
        ]
        floor_run = after[id(optimizer.consecutive_floor_skips)]
        restored = _restored_metrics(model, causes, skipped, state[3], metrics, data, floor_run)
        logs = _logs(model, causes, logs, skipped, restored)
        values = {name: after[id(getattr(optimizer, name))] for name in PRECISION_LOGS}
        return with_precision(logs, values), (trainable, forward, slots, restored)

    return guarded_step


def current_value(model: keras.Model, variable: Any) -> Any:
    """Reads a variable of the model's optimizer, also where `fit` keeps the truth in its own state.

    Args:
        model: A compiled model, maybe in the middle of `fit`.
        variable: One of `model.optimizer.variables` or `model.metrics_variables`.

    Returns:
        A JAX array.
    """
    value = _held_by_fit(model).get(id(variable))
    return variable.value if value is None else value


def expose(model: keras.Model, variables: list[Any]) -> None:
    """Gives variables the value they have in the middle of `fit`, without waiting for it.

    Args:
        model: A compiled model.
        variables: Some of `model.optimizer.variables` or `model.metrics_variables`.
    """
    held = _held_by_fit(model)
    for variable in variables:
        if id(variable) in held:
            variable.assign(held[id(variable)])


def _held_by_fit(model: keras.Model) -> dict[int, Any]:
    state = getattr(model, "_jax_state", None)
    if not state or model._jax_state_synced:
        return {}
    return {
        **_by_variable(model.optimizer.variables, state.get("optimizer_variables") or []),
        **_by_variable(model.metrics_variables, state.get("metrics_variables") or []),
    }


def _by_variable(variables: list[Any], values: list[Any]) -> dict[int, Any]:
    return {id(variable): value for variable, value in zip(variables, values, strict=False)}


def _restored_metrics(
    model: keras.Model,
    causes: SkipCauses,
    skipped: Any,
    before: list[Any],
    after: list[Any],
    data: Any,
    floor_run: Any,
) -> list[Any]:
    counters = {id(variable): i for i, variable in enumerate(causes.variables)}
    # Under a condition: only a skipped step looks through its batch.
    increments = jax.lax.cond(
        skipped,
        lambda: find_causes(data, before, after, floor_run),
        lambda: [jnp.zeros((), "float32") for _ in counters],
    )
    return [
        old + increments[counters[id(variable)]]
        if id(variable) in counters
        else jnp.where(skipped, old, new)
        for variable, old, new in zip(model.metrics_variables, before, after, strict=True)
    ]


def _logs(
    model: keras.Model, causes: SkipCauses, logs: Any, skipped: Any, restored: list[Any]
) -> Any:
    if not isinstance(logs, dict):
        return logs
    mapping = list(zip(model.metrics_variables, restored, strict=True))
    counters = {id(variable) for variable in causes.variables}
    state = [value for variable, value in mapping if id(variable) not in counters]
    with keras.StatelessScope(state_mapping=mapping):
        results = model.get_metrics_result()
    numbers = {name: jnp.asarray(value) for name, value in logs.items() if name in results}
    left_out = merged(numbers, results, state)
    shown = {name: jnp.where(skipped, left_out[name], own) for name, own in numbers.items()}
    return {**logs, **shown}
