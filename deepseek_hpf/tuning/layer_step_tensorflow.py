"""The forward and backward pass of one layer under TensorFlow, compiled."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def layer_step(
    layer: keras.Layer, call: Any, upstream: list[Any], *, jit_compile: bool = False
) -> Callable[[], tuple[list[Any], list[Any]]]:
    """Compiles a call of a layer and its gradients.

    Args:
        layer: The layer, built.
        call: `(args, kwargs)`, with tensors in them.
        upstream: The gradient of each float tensor of the result.
        jit_compile: Whether XLA compiles it.

    Returns:
        What runs it to its end and returns the float results, and the gradients of float inputs and
        trainable weights, each a tensor or None.
    """
    flat = keras.tree.flatten(call)
    places = [place for place, value in enumerate(flat) if isinstance(value, tf.Tensor)]
    tensors = [flat[place] for place in places]
    has_device = bool(tf.config.list_physical_devices("GPU"))

    # The tensors are arguments: those of a closure would be folded into constants.
    @tf.function(jit_compile=jit_compile or None, autograph=False)
    def run(given: list[tf.Tensor], upstream: list[tf.Tensor]) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            floats = [value for value in given if value.dtype.is_floating]
            tape.watch(floats)
            values = [*flat]
            for place, value in zip(places, given, strict=True):
                values[place] = value
            args, kwargs = keras.tree.pack_sequence_as(call, values)
            result = keras.tree.flatten(layer(*args, **kwargs))
            outputs = [value for value in result if _is_float(value)]
        pulled = [tf.cast(g, o.dtype) for g, o in zip(upstream, outputs, strict=True)]
        leaves = [*floats, *(weight.value for weight in layer.trainable_weights)]
        return outputs, tape.gradient(outputs, leaves, output_gradients=pulled)

    def step() -> tuple[list[Any], list[Any]]:
        outputs, gradients = run(tensors, upstream)
        if has_device:
            tf.test.experimental.sync_devices()
        dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
        return list(outputs), dense

    return step


def run_recorded(model: keras.Model, x: Any, taken: Callable[[], list[Any]]) -> list[Any]:
    """Runs a model forward in training, and hands on what has been taken on the way.

    Args:
        model: The model.
        x: Its inputs.
        taken: Returns the tensors that were taken; called when the pass is over.

    Returns:
        Their values.
    """
    model(x, training=True)
    return taken()


def _is_float(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype.is_floating
