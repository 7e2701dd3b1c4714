"""Low-precision results with float32 gradients, under JAX."""

from collections.abc import Callable
from typing import Any

import jax


def differentiated_in_float32(
    function: Callable[..., jax.Array], x: jax.Array, *weights: jax.Array
) -> jax.Array:
    """Computes a function in the dtype of its input, and its gradients in float32.

    Args:
        function: Of the input and the weights, all of one dtype.
        x: The input, float16 or bfloat16.
        weights: float32.

    Returns:
        The function's result. The gradient of `x` has the dtype of `x`, those of the weights are
        float32 and never anything else.

    Example:
        >>> import jax
        >>> from deepseek_hpf.adapters.kernels.float32_gradients_jax import (
        ...     differentiated_in_float32,
        ... )
        >>> x, weight = jax.numpy.full((1, 1), 1e-4, "float16"), jax.numpy.ones((1, 1))
        >>> def tiny(weight):
        ...     return 1e-4 * differentiated_in_float32(jax.numpy.matmul, x, weight).sum()
        >>> f"{jax.grad(tiny)(weight).item():.1e}"
        '1.0e-08'
    """

    @jax.custom_vjp
    def apply(x: jax.Array, *weights: jax.Array) -> jax.Array:
        return function(x, *(weight.astype(x.dtype) for weight in weights))

    def forward(x: jax.Array, *weights: jax.Array) -> Any:
        return apply(x, *weights), (x, weights)

    def backward(kept: Any, upstream: jax.Array) -> tuple[jax.Array, ...]:
        x, weights = kept
        wide = [value.astype(x.dtype).astype("float32") for value in (x, *weights)]
        _, gradients = jax.vjp(function, *wide)
        dx, *dweights = gradients(upstream.astype("float32"))
        return dx.astype(x.dtype), *dweights

    apply.defvjp(forward, backward)
    result: jax.Array = apply(x, *weights)
    return result
