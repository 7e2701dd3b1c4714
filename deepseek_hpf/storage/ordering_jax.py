"""The order of operations within a compiled step, which decides what is in memory together.

XLA orders as it sees fit. On a CPU it puts operations off whose results are needed late, packing
among them, and keeps alive what they take: then packed values only add. Its `optimization_barrier`
is gone by that time. What does hold it are conditionals: it does not look into one, nor knows that
one condition is always true.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def before(outputs: Any, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """Has something computed before anybody uses some outputs.

    Args:
        outputs: Arrays.
        function: What is to be computed.
        arguments: Of what.

    Returns:
        The outputs, and the result of the function.
    """
    if _heeds_barriers():
        return jax.lax.optimization_barrier((outputs, function(*arguments)))
    result, done = _as_one(function, arguments, arguments)
    return jax.tree.map(lambda x: jnp.where(done, x, jnp.zeros_like(x)), outputs), result


def after(inputs: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """Has something computed only when some arrays are there.

    Args:
        inputs: Arrays.
        function: What is to be computed.
        arguments: Of what.

    Returns:
        The result of the function.
    """
    if _heeds_barriers():
        arguments, _ = jax.lax.optimization_barrier((arguments, inputs))
        return function(*arguments)
    return _as_one(function, arguments, (inputs, arguments))[0]


def _heeds_barriers() -> bool:
    return jax.default_backend() != "cpu"


def _as_one(function: Callable[..., Any], arguments: Any, there: Any) -> tuple[Any, Any]:
    """The result of a function, computed when `there` is, and a truth known only then."""
    expected = jax.eval_shape(function, *arguments)
    if not jax.tree.leaves(arguments):
        return function(*arguments), jnp.bool_(True)

    def compute(*arguments: Any) -> tuple[Any, Any]:
        return function(*arguments), jnp.bool_(True)

    def never(*arguments: Any) -> tuple[Any, Any]:
        zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), expected)
        return zeros, jnp.bool_(False)

    return jax.lax.cond(_truth_about(there), compute, never, *arguments)


def _truth_about(values: Any) -> Any:
    """A truth that is known to us alone: that no square is 2 modulo 4."""
    numbers = [
        value.reshape(-1)[0].astype(jnp.int32) for value in jax.tree.leaves(values) if value.size
    ]
    number = sum(numbers, jnp.int32(1))
    return (number * number) & 3 != 2
