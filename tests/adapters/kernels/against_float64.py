"""Results and gradients of a layer in three ways: its own, its kernel's, and in float64."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call

Arrays = list[np.ndarray]


def outputs_and_gradients(layer: keras.Layer, x: np.ndarray, seed: int = 0) -> Arrays:
    """The result, the gradient of the input, those of the weights, all as float64."""
    rng = np.random.default_rng(seed)

    @tf.function
    def run(x: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            upstream = tf.constant(rng.standard_normal(y.shape), y.dtype)
        wanted = [x, *(v.value for v in layer.trainable_variables)]
        return [y, *tape.gradient(y, wanted, output_gradients=upstream)]

    found = run(tf.constant(x, layer.compute_dtype))
    return [tf.cast(value, tf.float64).numpy() for value in found]


def three_ways(
    make: Callable[[str], keras.Layer],
    wrap: Callable[[keras.Layer, Call], Call],
    x: np.ndarray,
    policy: str,
) -> tuple[Arrays, Arrays, Arrays]:
    """With the kernel, without it, and in float64 with the same weights."""
    layer, exact = make(policy), make("float64")
    for one in (layer, exact):
        one.build(x.shape)
    rng = np.random.default_rng(1)
    weights = [0.3 * rng.standard_normal(w.shape).astype("float32") for w in layer.get_weights()]
    layer.set_weights(weights)
    exact.set_weights(weights)
    x = np.asarray(tf.cast(tf.constant(x, layer.compute_dtype), tf.float64))
    own = outputs_and_gradients(layer, x)
    layer.call = wrap(layer, layer.call)
    return outputs_and_gradients(layer, x), own, outputs_and_gradients(exact, x)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """Root of the mean squared error, over that of the exact values."""
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


def assert_as_exact(ways: tuple[Arrays, Arrays, Arrays], *, slack: float, least: float) -> None:
    """Errors at most `slack` times the layer's own, or below `least`."""
    with_kernel, own, exact = ways
    assert len(with_kernel) == len(exact)
    for ours, theirs, truth in zip(with_kernel, own, exact, strict=True):
        assert ours.shape == truth.shape
        assert error(ours, truth) <= max(slack * error(theirs, truth), least)
