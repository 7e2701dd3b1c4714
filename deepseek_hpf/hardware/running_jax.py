"""Runs a function of arrays compiled by JAX, until the device is done."""

from collections.abc import Callable, Sequence
from typing import Any

import jax


def running(
    function: Callable[..., Any], inputs: Sequence[Any], *, with_gradients: bool
) -> Callable[[], None]:
    """Makes a work that can be timed.

    Args:
        function: Takes the inputs, returns an array.
        inputs: Arrays.
        with_gradients: Whether the gradients by all inputs are taken too. What flows back is the
            output itself: a constant could be compiled away.

    Returns:
        A function that computes once and waits.
    """

    @jax.jit
    def compiled(*values: Any) -> Any:
        if not with_gradients:
            return function(*values)
        output, backward = jax.vjp(function, *values)
        return output, backward(output)

    def work() -> None:
        jax.block_until_ready(compiled(*inputs))

    return work
