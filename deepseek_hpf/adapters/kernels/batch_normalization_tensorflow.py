"""Batch normalization by TensorFlow's fused operation.

Keras casts the input to float32 and computes mean, variance, normalization and their gradients
operation by operation. The fused operation reads the input as it is, computes in float32 in
registers, and takes the ReLU behind it with it (TensorFlow's graph optimizer sees to that, in
training too). The variance that it returns is the unbiased one; Keras keeps the biased one.
"""

import math
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend  # masks of tensors have no public access
from tensorflow.python.ops import control_flow_util  # nothing public tells that XLA compiles

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.fused_batch_norm_tensorflow import Moments, infer, train

DTYPES = ("float32", "bfloat16", "float16")
RANKS = range(2, 6)


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own normalization.

    Args:
        layer: A built `BatchNormalization`.

    Returns:
        The reason, or None.
    """
    rank = layer.input_spec.ndim
    if layer.compute_dtype not in DTYPES:
        return f"the layer computes in {layer.compute_dtype}"
    if layer.synchronized:
        return "it is synchronized across devices"
    if layer.renorm:
        return "it renormalizes"
    if rank not in RANKS:
        return f"its input has {rank} dimensions"
    if layer.axis not in (-1, 1, rank - 1, 1 - rank):
        return f"its axis is {layer.axis}, neither the first nor the last after the batch"
    if _gets_masks(layer):
        return "its input has a mask"
    return None


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer's normalization, fused.

    What XLA compiles, and what has a mask, is left to the layer's own `call`.

    Args:
        layer: A `BatchNormalization` that is not refused.
        call: Its present `call`.

    Returns:
        The wrapper.
    """

    def batch_norm_call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if mask is not None or not _is_fusible(inputs) or not isinstance(training, bool | None):
            return call(inputs, training=training, mask=mask)
        x, data_format = _as_four_dimensions(inputs, layer.axis)
        gamma, beta, mean, variance = _parameters(layer)
        if training and layer.trainable:
            gamma = _unless_empty(gamma, inputs)
            y, *moments = train(x, gamma, beta, layer.epsilon, data_format)
            _update(layer, (mean, variance), moments)
        else:
            y = infer(x, gamma, beta, mean, variance, layer.epsilon, data_format)
        return tf.cast(_as_before(y, inputs), layer.compute_dtype)

    return batch_norm_call


def _parameters(layer: keras.Layer) -> tuple[tf.Tensor, ...]:
    """Scale, offset, mean and variance in float32."""
    mean, variance = (
        tf.cast(tf.convert_to_tensor(v), tf.float32)
        for v in (layer.moving_mean, layer.moving_variance)
    )
    gamma = tf.cast(layer.gamma, tf.float32) if layer.scale else tf.ones_like(mean)
    beta = tf.cast(layer.beta, tf.float32) if layer.center else tf.zeros_like(mean)
    return gamma, beta, mean, variance


def _unless_empty(gamma: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Gives the scale a gradient of NaN where the batch is empty, as Keras does.

    The statistics of an empty batch are NaN: by the gradient a guard sees that, and skips the step.
    """
    if x.shape.num_elements():
        return gamma
    count = tf.cast(tf.shape(x)[0], tf.float32)
    return gamma * (count / count)


def _update(layer: keras.Layer, before: Moments, of_batch: list[tf.Tensor]) -> None:
    """The moving statistics, by Keras's formula."""
    variables = (layer.moving_mean, layer.moving_variance)
    for variable, old, new in zip(variables, before, of_batch, strict=True):
        variable.assign(old * layer.momentum + new * (1.0 - layer.momentum))


def _as_four_dimensions(x: tf.Tensor, axis: int) -> tuple[tf.Tensor, str]:
    """The input in a shape that the operation takes, with its data format."""
    rank = x.shape.rank
    last = axis in (-1, rank - 1)
    data_format = "NHWC" if last else "NCHW"
    if rank == 4:
        return x, data_format
    known = zip(tf.unstack(tf.shape(x)), x.shape, strict=True)
    sizes = [size if static is None else static for size, static in known]
    channels = sizes.pop(-1 if last else 1)
    batch, *between = sizes
    height, width = (math.prod(between), 1) if rank < 5 else (math.prod(between[:-1]), between[-1])
    shape = [batch, height, width, channels] if last else [batch, channels, height, width]
    return tf.reshape(x, shape), data_format


def _as_before(y: tf.Tensor, inputs: tf.Tensor) -> tf.Tensor:
    """The result in the shape of the input; nothing comes between it and a ReLU where it has it."""
    if inputs.shape.rank == 4:
        return y
    return tf.ensure_shape(tf.reshape(y, tf.shape(inputs)), inputs.shape)


def _is_fusible(x: Any) -> bool:
    """Whether the fused operation takes an input, and is as exact as Keras.

    XLA replaces it by one that subtracts the squared mean from the mean square: where the mean is
    large against the deviation, that is noise or NaN. Keras's own formula is safe there, and XLA
    fuses it.
    """
    if not isinstance(x, tf.Tensor) or x.dtype.name not in DTYPES:
        return False
    if x.shape.rank not in RANKS:
        return False
    by_xla = control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
    return not (by_xla or tf.config.optimizer.get_jit())


def _gets_masks(layer: keras.Layer) -> bool:
    """Whether a functional model is known to hand a mask to a layer."""
    tensors = [t for node in layer._inbound_nodes for t in node.input_tensors]
    return any(backend.get_keras_mask(tensor) is not None for tensor in tensors)
