"""Taps under JAX: custom gradients for cotangents, a trace for operations, callbacks in loops."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from deepseek_hpf.profiler.statistics import EXPONENTS, Partial, partial_statistics


def _count(exponents: Any) -> Any:
    return jnp.bincount(exponents, length=EXPONENTS + 1)


@functools.cache
def _compiled() -> Any:
    return jax.jit(lambda x: partial_statistics(x, _count, keras.ops))


def reduce(values: Any) -> Partial:
    """Statistics of a chunk of values.

    Args:
        values: Float array of one axis.

    Returns:
        What `Summary.add` takes.
    """
    parts: Partial = jax.device_get(_compiled()(values))
    return parts


def is_concrete(tensor: Any) -> bool:
    """Whether values can be read now."""
    return isinstance(tensor, jax.Array) and not isinstance(tensor, jax.core.Tracer)


def observe(tensor: Any, report: Callable[[Any], None]) -> None:
    """Calls `report` with the values of a traced array when they are known.

    Args:
        tensor: A tracer: within a loop, or of a function that is differentiated.
        report: Takes a NumPy array: nothing may wait for the device within a callback.
    """
    jax.debug.callback(lambda values: report(np.asarray(values)), tensor)


def with_gradient(tensor: Any, report: Callable[[Any], None]) -> Any:
    """The array, and a call of `report` with its cotangent when that is known."""

    @jax.custom_vjp
    def tap(x: Any) -> Any:
        return x

    def backward(_: None, gradient: Any) -> tuple[Any]:
        if is_concrete(gradient):
            report(gradient)
        else:
            observe(gradient, report)
        return (gradient,)

    tap.defvjp(lambda x: (x, None), backward)
    return tap(tensor)


def differentiate(
    function: Callable[[list[Any]], Any], values: list[Any]
) -> tuple[Any, Callable[[], list[Any]]]:
    """Runs a function; its gradients are computed when asked for.

    Args:
        function: From values to a scalar, or None where there is no loss.
        values: Arrays.

    Returns:
        The scalar, and a function that returns one gradient for each value.
    """
    missing = False

    def scalar(arrays: list[Any]) -> Any:
        nonlocal missing
        loss = function(arrays)
        missing = loss is None
        return jnp.zeros(()) if missing else loss

    loss, backward = jax.vjp(scalar, values)
    jax.effects_barrier()
    return None if missing else loss, lambda: _pulled(backward, loss)


def _pulled(backward: Any, loss: Any) -> list[Any]:
    (gradients,) = backward(jnp.ones_like(loss))
    jax.effects_barrier()
    return list(gradients)


@contextmanager
def listening(seen: Callable[[str, list[Any], list[Any]], None]) -> Iterator[None]:
    """JAX has no hook on operations as they run: see `traced_operations`."""
    yield


def traced_operations(
    function: Callable[[list[Any]], Any],
    values: list[Any],
    seen: Callable[[str, str, list[Any], list[Any]], None],
) -> None:
    """Traces a function and lists its operations, without running them.

    Args:
        function: From arrays to anything.
        values: Arrays.
        seen: Takes the name stack, the primitive, abstract inputs and outputs of each operation.
    """
    traced = jax.make_jaxpr(lambda arrays: [function(arrays)])(values)
    _list(traced.jaxpr, "", seen)


def _list(jaxpr: Any, outer: str, seen: Any) -> None:
    for equation in jaxpr.eqns:
        stack = f"{outer}/{equation.source_info.name_stack}"
        inner = [
            getattr(each, "jaxpr", each)
            for value in equation.params.values()
            for each in (value if isinstance(value, list | tuple) else [value])
            if hasattr(getattr(each, "jaxpr", each), "eqns")
        ]
        for each in inner:
            _list(each, stack, seen)
        if not inner:
            seen(
                stack,
                equation.primitive.name,
                [v.aval for v in equation.invars if hasattr(v, "aval")],
                [v.aval for v in equation.outvars],
            )


_CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "custom_jvp_call",
    "custom_vjp_call",
)


def evaluated_operations(
    function: Callable[[list[Any]], Any],
    values: list[Any],
    seen: Callable[[str, str, list[Any], list[Any]], None],
    backward: bool,
) -> None:
    """Traces a function and runs its operations one by one.

    Args:
        function: From arrays to a scalar, or None where there is no loss.
        values: Arrays.
        seen: Takes the name stack, the primitive, inputs and outputs of each operation.
        backward: Whether to report those of the backward pass, or those of the function itself.
    """

    def traced(arrays: list[Any]) -> Any:
        if not backward:
            return function(arrays)
        loss, pull = jax.vjp(function, arrays)
        return pull(jnp.ones_like(loss))

    def report(stack: str, *operation: Any) -> None:
        if ("transpose(" in stack) == backward:
            seen(stack, *operation)

    closed = jax.make_jaxpr(traced)(values)
    _evaluate(closed.jaxpr, closed.consts, values, "", report)


def _evaluate(jaxpr: Any, constants: Any, arguments: Any, outer: str, seen: Any) -> list[Any]:
    held = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(variable: Any) -> Any:
        if hasattr(variable, "val"):
            return jnp.asarray(variable.val, variable.aval.dtype)
        return held[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _run(equation, inputs, f"{outer}/{equation.source_info.name_stack}", seen)
        held.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _run(equation: Any, inputs: list[Any], stack: str, seen: Any) -> list[Any]:
    primitive, parameters = equation.primitive, equation.params
    called = parameters.get("jaxpr") or parameters.get("call_jaxpr")
    if primitive.name in _CALLS and called is not None:
        opened = getattr(called, "jaxpr", called)
        return _evaluate(opened, getattr(called, "consts", ()), inputs, stack, seen)
    bound = primitive.get_bind_params(parameters)
    # JAX before 0.10 has the functions that a primitive calls apart.
    functions, rest = bound if isinstance(bound, tuple) else ((), bound)
    result = primitive.bind(*functions, *inputs, **rest)
    outputs = list(result) if primitive.multiple_results else [result]
    seen(stack, primitive.name, inputs, outputs)
    return outputs


def scope(name: str) -> Any:
    """A scope whose name the operations of a trace carry."""
    return jax.named_scope(name)
