"""GELU and SiLU as one pass over memory each way, in layers that apply them.

TensorFlow runs them operation by operation, in the dtype of the layer: a dozen passes, most of
them scalar code in bfloat16. Compiled by XLA, forward and gradient are one loop each that
computes in float32 in registers, and only the input is kept for the gradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.refusals_tensorflow import on_cpu_only

Elementwise = Callable[..., tf.Tensor]

SMALL = 8192  # values an example: below it, starting the compiled loop costs what it saves


def applies(layer: keras.Layer) -> bool:
    """Whether a layer applies GELU or SiLU.

    Args:
        layer: A layer with an `activation`.

    Returns:
        True if it does.
    """
    return layer.activation in fused_activations()


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own activation.

    Args:
        layer: A layer with an `activation` that its `call` applies.

    Returns:
        The reason, or None.
    """
    if not applies(layer):
        return "its activation is neither GELU nor SiLU"
    if layer.compute_dtype not in ("bfloat16", "float32"):
        return f"the layer computes in {layer.compute_dtype}"
    return on_cpu_only(layer)


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer with its activation fused; all else is its own `call`.

    Args:
        layer: A layer that is not refused.
        call: Its present `call`.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def activation_call(*args: Any, **kwargs: Any) -> Any:
        own = layer.activation
        layer.activation = _unless_small(own)
        try:
            return call(*args, **kwargs)
        finally:
            layer.activation = own

    return activation_call


def _unless_small(own: Elementwise) -> Elementwise:
    fused = fused_activations().get(own, own)

    def activation(x: Any) -> Any:
        values = x.shape[1:].num_elements()
        return own(x) if values is not None and values < SMALL else fused(x)

    return activation


def gelu(x: tf.Tensor) -> tf.Tensor:
    """GELU, x Φ(x) with Φ the normal distribution, by the error function.

    Args:
        x: Any shape, bfloat16 or float32.

    Returns:
        Same shape and dtype.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.activation_tensorflow import gelu
        >>> [f"{y:.4f}" for y in gelu(tf.constant([-1.0, 0.0, 1.0])).numpy()]
        ['-0.1587', '0.0000', '0.8413']
    """
    return _fused(_gelu, _gelu_gradient, x)


def silu(x: tf.Tensor) -> tf.Tensor:
    """SiLU, x σ(x) with σ the logistic function.

    Args:
        x: Any shape, bfloat16 or float32.

    Returns:
        Same shape and dtype.
    """
    return _fused(_silu, _silu_gradient, x)


def _exact_gelu(x: Any, approximate: bool = False) -> tf.Tensor:
    return keras.activations.gelu(x, True) if approximate else gelu(tf.convert_to_tensor(x))


def fused_activations() -> dict[Any, Elementwise]:
    """Keras's activation functions that have a fused equivalent.

    Returns:
        Keras's function to ours.
    """
    return {keras.activations.gelu: _exact_gelu, keras.activations.silu: silu}


def _fused(forward: Elementwise, backward: Elementwise, x: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def apply(x: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return _shaped(backward(_flat(x), _flat(upstream)), x)

        return _shaped(forward(_flat(x)), x), gradient

    result: tf.Tensor = apply(tf.convert_to_tensor(x))
    return result


def _flat(x: tf.Tensor) -> tf.Tensor:
    # One traced function serves all shapes; XLA compiles once for each number of elements.
    return tf.reshape(x, [-1])


def _shaped(flat: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.reshape(flat, tf.shape(like)), like.shape)


def _compiled(function: Elementwise) -> Elementwise:
    compiled: Elementwise = tf.function(
        function, jit_compile=True, autograph=False, reduce_retracing=True
    )
    return compiled


@_compiled
def _gelu(x: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    # The complement keeps its digits where 1 + erf has lost them: at large negative values.
    return tf.cast(0.5 * wide * tf.math.erfc(-wide * math.sqrt(0.5)), x.dtype)


@_compiled
def _gelu_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    distribution = 0.5 * tf.math.erfc(-wide * math.sqrt(0.5))
    density = tf.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return tf.cast(tf.cast(upstream, tf.float32) * (distribution + wide * density), x.dtype)


@_compiled
def _silu(x: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    return tf.cast(wide * tf.sigmoid(wide), x.dtype)


@_compiled
def _silu_gradient(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(x, tf.float32)
    gate = tf.sigmoid(wide)
    return tf.cast(tf.cast(upstream, tf.float32) * gate * (1.0 + wide * (1.0 - gate)), x.dtype)
