"""A layer's result and gradients, as they come, under JAX."""

import jax
import jax.numpy as jnp
import keras


def outputs_and_gradients(layer, x, upstream=None, jit_compile=False):
    def run(x, weights, upstream):
        def result(x, weights):
            # `stateless_call` of a layer skips `__call__`, and with it the casts of the weights.
            with keras.StatelessScope(zip(layer.trainable_variables, weights, strict=True)):
                return layer(x)

        y, gradients = jax.vjp(result, x, weights)
        of_input, of_weights = gradients(upstream)
        return [y, of_input, *of_weights]

    x = jnp.asarray(x).astype(layer.compute_dtype)
    y = jnp.ones_like(layer(x)) if upstream is None else jnp.asarray(upstream)
    weights = [v.value for v in layer.trainable_variables]
    run = jax.jit(run) if jit_compile else run
    return run(x, weights, y.astype(layer.compute_dtype))
