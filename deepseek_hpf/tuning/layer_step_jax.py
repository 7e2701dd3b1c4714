"""The forward and backward pass of one layer under JAX, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras


def layer_step(
    layer: keras.Layer, call: Any, upstream: list[Any], *, jit_compile: bool = False
) -> Callable[[], tuple[list[Any], list[Any]]]:
    """Compiles a call of a layer and its gradients.

    Args:
        layer: The layer, built.
        call: `(args, kwargs)`, with tensors in them.
        upstream: The gradient of each float tensor of the result.
        jit_compile: Without meaning: it is always compiled.

    Returns:
        What runs it to its end and returns the float results, and the gradients of float inputs and
        trainable weights, each a tensor or None.
    """
    flat = keras.tree.flatten(call)
    places = [place for place, value in enumerate(flat) if isinstance(value, jax.Array)]
    floating = [place for place in places if _is_float(flat[place])]
    others = {place: flat[place] for place in places if place not in floating}

    def run(floats: Any, weights: Any, state: Any, others: Any, upstream: Any) -> Any:
        def forward(floats: list[Any], weights: list[Any]) -> list[Any]:
            values = [*flat]
            for place, value in [*zip(floating, floats, strict=True), *others.items()]:
                values[place] = value
            args, kwargs = keras.tree.pack_sequence_as(call, values)
            result, _ = layer.stateless_call(weights, state, *args, **kwargs)
            return [value for value in keras.tree.flatten(result) if _is_float(value)]

        outputs, pull = jax.vjp(forward, floats, weights)
        pulled = [g.astype(o.dtype) for g, o in zip(upstream, outputs, strict=True)]
        return outputs, [*jax.tree.leaves(pull(pulled))]

    compiled = jax.jit(run)

    def step() -> tuple[list[Any], list[Any]]:
        weights = [variable.value for variable in layer.trainable_variables]
        state = [variable.value for variable in layer.non_trainable_variables]
        floats = [flat[place] for place in floating]
        done: tuple[list[Any], list[Any]] = jax.block_until_ready(
            compiled(floats, weights, state, others, upstream)
        )
        return done

    return step


def run_recorded(model: keras.Model, x: Any, taken: Callable[[], list[Any]]) -> list[Any]:
    """Runs a model forward in training, and hands on what has been taken on the way.

    Outside a trace each of its operations would be compiled on its own, which takes longer.

    Args:
        model: The model.
        x: Its inputs.
        taken: Returns the tensors that were taken; called when the pass is over.

    Returns:
        Their values.
    """

    # A function of its own: JAX would run the trace of one that it knows.
    def forward(trainable: list[Any], others: list[Any], x: Any) -> list[Any]:
        model.stateless_call(trainable, others, x, training=True)
        return taken()

    state = [[v.value for v in vs] for vs in (model.trainable_variables, _others(model))]
    values: list[Any] = jax.jit(forward)(*state, x)
    return values


def _others(model: keras.Model) -> list[Any]:
    others: list[Any] = model.non_trainable_variables
    return others


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
