"""Batch normalization by TensorFlow's fused operation.

Keras casts the input to float32 and computes mean, variance, normalization and their gradients
operation by operation. The fused operation reads the input as it is, computes in float32 in
registers, and takes the ReLU behind it with it (TensorFlow's graph optimizer sees to that, in
training too). The variance that it returns is the unbiased one; Keras keeps the biased one.

For float32 inputs the statistics are summed up in two stages, see `_grouped_moments`: within one
operation oneDNN adds up all values of a channel one after the other, and loses digits that Keras
keeps. In low precision the rounding of the result hides that.
"""

import math
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend  # masks of tensors have no public access
from tensorflow.python.ops import control_flow_util  # nothing public tells that XLA compiles

from deepseek_hpf.adapters.call_hooks import Call

DTYPES = ("float32", "bfloat16", "float16")
RANKS = range(2, 6)
MOST_GROUPS = 64
MOST_CHANNELS = 2**17  # of all groups together

Moments = tuple[tf.Tensor, tf.Tensor]


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


def train(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, data_format: str = "NHWC"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta with the statistics of the batch.

    Args:
        x: Four dimensions, float32, bfloat16 or float16.
        gamma: Shape (channels,), float32.
        beta: Shape (channels,), float32.
        epsilon: Added to the variance.
        data_format: "NHWC" or "NCHW".

    Returns:
        The result in the shape and dtype of `x`; mean and biased variance of each channel, float32,
        through which no gradient flows.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.batch_normalization_tensorflow import train
        >>> x = tf.constant([[[[1.0]]], [[[3.0]]]], tf.bfloat16)
        >>> y, mean, variance = train(x, tf.ones(1), tf.zeros(1), 0.0)
        >>> y.numpy().ravel().tolist(), float(mean[0]), float(variance[0])
        ([-1.0, 1.0], 2.0, 1.0)
    """
    if x.dtype == tf.float32 and not tf.config.list_logical_devices("GPU"):
        return _train_float32(x, gamma, beta, epsilon, data_format)
    y, mean, variance = _fused(x, gamma, beta, None, epsilon, data_format)
    channels = tf.size(gamma, out_type=tf.int64)
    count = tf.cast(tf.size(x, out_type=tf.int64) // channels, tf.float32)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance * ((count - 1.0) / count))


def infer(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    data_format: str = "NHWC",
) -> tf.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta with given statistics.

    Args:
        x: Four dimensions, float32, bfloat16 or float16.
        gamma: Shape (channels,), float32.
        beta: Shape (channels,), float32.
        mean: Shape (channels,), float32.
        variance: Shape (channels,), float32.
        epsilon: Added to the variance.
        data_format: "NHWC" or "NCHW".

    Returns:
        Shape and dtype of `x`.
    """
    return _fused(x, gamma, beta, (mean, variance), epsilon, data_format)[0]


def _train_float32(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float, data_format: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Moments first, then the fused normalization with them, then the fused gradient of both."""
    moments = _moments(tf.stop_gradient(x), data_format)

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            found = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=x,
                scale=gamma,
                reserve_space_1=moments[0],
                reserve_space_2=moments[1],
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                data_format=data_format,
                is_training=True,
            )
            return list(found[:3])

        return infer(x, gamma, beta, *moments, epsilon, data_format), gradient

    return normalize(x, gamma, beta), *moments


def _moments(x: tf.Tensor, data_format: str) -> Moments:
    groups = _groups(x.shape) if data_format == "NHWC" else 1
    if groups > 1:
        return _grouped_moments(x, groups)
    mean, variance = tf.nn.moments(x, [0, 1, 2] if data_format == "NHWC" else [0, 2, 3])
    return mean, variance


def _groups(shape: tf.TensorShape) -> int:
    """Into how many groups the rows of a batch can be dealt, whatever the number of images."""
    _, height, width, channels = shape
    if height is None or width is None:
        return 1
    most = min(MOST_GROUPS, MOST_CHANNELS // max(channels, 1))
    pixels = height * width
    return max((k for k in range(1, most + 1) if pixels % k == 0), default=1)


def _grouped_moments(x: tf.Tensor, groups: int) -> Moments:
    """Mean and variance of groups of rows, and from those the mean and variance of all.

    With groups of the same size: mean = mean of means, variance = mean of variances + variance of
    means. The error of a sum grows with the number of its terms; both sums are short here.
    """
    channels = x.shape[-1]
    dealt = tf.reshape(x, [1, 1, -1, groups * channels])
    ones, zeros = tf.ones([groups * channels]), tf.zeros([groups * channels])
    _, means, variances = _fused(dealt, ones, zeros, None, 1.0, "NHWC")
    count = tf.cast(tf.shape(dealt)[2], tf.float32)
    variances = tf.reshape(variances * ((count - 1.0) / count), [groups, channels])
    mean, between = tf.nn.moments(tf.reshape(means, [groups, channels]), [0])
    return mean, tf.reduce_mean(variances, 0) + between


def _fused(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    moments: Moments | None,
    epsilon: float,
    data_format: str,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Result, mean and unbiased variance; of the batch where no moments are given."""
    mean, variance = moments or (tf.zeros([0]), tf.zeros([0]))
    found = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        exponential_avg_factor=1.0,
        data_format=data_format,
        is_training=moments is None,
    )
    return tuple(found[:3])


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
