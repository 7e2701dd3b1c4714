"""Layer normalization over the last axis as one compiled pass each way.

TensorFlow runs Keras's mean, squared difference, scale and their gradients operation by operation
in float32. Compiled by XLA they are a few loops, and of the float32 values only a mean and a
scale for each row are kept.
"""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.refusals_tensorflow import on_cpu_only

Tensors = tuple[tf.Tensor, ...]


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own normalization.

    Args:
        layer: A built `LayerNormalization`.

    Returns:
        The reason, or None.
    """
    if layer.rms_scaling:
        return "it scales by the root mean square"
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if len(axes) != 1 or axes[0] not in (-1, _last_axis(layer)):
        return "it does not normalize the last axis alone"
    if not layer.scale or not layer.center:
        return "it lacks a scale or an offset"
    if layer.compute_dtype not in ("bfloat16", "float32"):
        return f"the layer computes in {layer.compute_dtype}"
    return on_cpu_only(layer)


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer's normalization, compiled.

    Args:
        layer: A `LayerNormalization` that is not refused.
        call: Its present `call`; what it does is done anew.

    Returns:
        The wrapper.
    """

    def layer_norm_call(inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        if x.dtype not in (tf.bfloat16, tf.float32) or x.shape[-1] is None:
            return call(inputs)
        gamma, beta = (
            tf.cast(tf.convert_to_tensor(variable), tf.float32)
            for variable in (layer.gamma, layer.beta)
        )
        return tf.cast(layer_norm(x, gamma, beta, layer.epsilon), layer.compute_dtype)

    return layer_norm_call


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta along the last axis, in float32.

    Args:
        x: Shape (..., features), bfloat16 or float32.
        gamma: Shape (features,), float32.
        beta: Shape (features,), float32.
        epsilon: Added to the variance.

    Returns:
        Shape and dtype of `x`.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.layer_norm_tensorflow import layer_norm
        >>> layer_norm(tf.constant([[1.0, 3.0]]), tf.ones(2), tf.zeros(2), 0.0).numpy().tolist()
        [[-1.0, 1.0]]
    """
    features = x.shape[-1]

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        rows = tf.reshape(x, [-1, features])
        result, mean, scale = _normalize(rows, gamma, beta, tf.constant(epsilon, tf.float32))

        def gradient(upstream: tf.Tensor) -> Tensors:
            given = tf.reshape(upstream, [-1, features])
            dx, dgamma, dbeta = _gradient(rows, gamma, mean, scale, given)
            return _shaped(dx, x), dgamma, dbeta

        return _shaped(result, x), gradient

    result: tf.Tensor = normalize(x, gamma, beta)
    return result


@tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
def _normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: tf.Tensor) -> Tensors:
    wide = tf.cast(x, tf.float32)
    mean = tf.reduce_mean(wide, -1, keepdims=True)
    centred = wide - mean
    scale = tf.math.rsqrt(tf.reduce_mean(centred * centred, -1, keepdims=True) + epsilon)
    return tf.cast(centred * scale * gamma + beta, x.dtype), mean, scale


@tf.function(jit_compile=True, autograph=False, reduce_retracing=True)
def _gradient(
    x: tf.Tensor, gamma: tf.Tensor, mean: tf.Tensor, scale: tf.Tensor, upstream: tf.Tensor
) -> Tensors:
    normal = (tf.cast(x, tf.float32) - mean) * scale
    given = tf.cast(upstream, tf.float32)
    inner = given * gamma
    along = tf.reduce_mean(inner * normal, -1, keepdims=True)
    dx = scale * (inner - tf.reduce_mean(inner, -1, keepdims=True) - normal * along)
    return tf.cast(dx, x.dtype), tf.reduce_sum(given * normal, 0), tf.reduce_sum(given, 0)


def _shaped(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.reshape(rows, tf.shape(like)), like.shape)


def _last_axis(layer: keras.Layer) -> int:
    spec = getattr(layer, "_build_shapes_dict", None) or {}
    shapes = list(spec.values())
    return len(shapes[0]) - 1 if shapes else -1
