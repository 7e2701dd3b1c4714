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
    if not jax.tree.leaves(arguments):
        return outputs, function(*arguments)
    expected = jax.eval_shape(function, *arguments)

    def compute(*arguments: Any) -> tuple[Any, Any]:
        return function(*arguments), jnp.bool_(True)

    def never(*arguments: Any) -> tuple[Any, Any]:
        zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), expected)
        return zeros, jnp.bool_(False)

    result, done = jax.lax.cond(_truth_about(arguments), compute, never, *arguments)
    return jax.tree.map(lambda x: jnp.where(done, x, jnp.zeros_like(x)), outputs), result


def after(inputs: Any, values: Any) -> Any:
    """Has nothing be computed of some values before some arrays are there.

    Args:
        inputs: The arrays.
        values: The values, nested.

    Returns:
        The values. They are not known to be those that were given: what has been computed of these
        before is not taken in place of what is computed of them now.
    """
    if _heeds_barriers():
        return jax.lax.optimization_barrier((values, inputs))[0]
    there = _truth_about(inputs)
    return jax.tree.map(lambda x: jnp.where(there, x, jnp.zeros_like(x)), values)


def _heeds_barriers() -> bool:
    return jax.default_backend() != "cpu"


def _truth_about(values: Any) -> Any:
    """A truth that is known to us alone: that no square is 2 modulo 4."""
    numbers = [
        value.reshape(-1)[0].astype(jnp.int32) for value in jax.tree.leaves(values) if value.size
    ]
    number = sum(numbers, jnp.int32(1))
    return (number * number) & 3 != 2
