"""TensorFlow's fused batch normalization, as exact as Keras's.

The operation computes in float32, whatever its input is. In low precision the rounding of the
result is all there is to see. In float32 it is not: within one operation oneDNN adds up all values
of a channel one after the other, and loses digits that Keras keeps. There the statistics are
summed up in two stages, and what is done once for a channel is done in float64.
"""

from typing import Any

import tensorflow as tf

MOST_GROUPS = 64
MOST_CHANNELS = 2**17  # of all groups together

Moments = tuple[tf.Tensor, tf.Tensor]


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
        >>> from deepseek_hpf.adapters.kernels.fused_batch_norm_tensorflow import train
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
    exact = _moments(tf.stop_gradient(x), data_format)
    mean, variance = (tf.cast(moment, tf.float32) for moment in exact)

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            found = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=x,
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0]),
                epsilon=epsilon,
                data_format=data_format,
                is_training=True,
            )
            return list(found[:3])

        return _scaled(x, gamma, beta, exact, epsilon, data_format), gradient

    return normalize(x, gamma, beta), mean, variance


def _scaled(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    exact: Moments,
    epsilon: float,
    data_format: str,
) -> tf.Tensor:
    """What `infer` gives, with the work on each channel in float64.

    The operation is left a scale, an offset, and a variance of 1. What the rounding of the mean
    takes from it goes into the offset.
    """
    mean = tf.cast(exact[0], tf.float32)
    scale = tf.cast(gamma, tf.float64) * tf.math.rsqrt(exact[1] + epsilon)
    offset = tf.cast(beta, tf.float64) + (tf.cast(mean, tf.float64) - exact[0]) * scale
    scale, offset = tf.cast(scale, tf.float32), tf.cast(offset, tf.float32)
    return infer(x, scale, offset, mean, tf.ones_like(mean), 0.0, data_format)


def _moments(x: tf.Tensor, data_format: str) -> Moments:
    """Mean and variance of the channels, float64, from those of groups of the same size.

    Mean = mean of means, variance = mean of variances + variance of means. The error of a sum
    grows with the number of its terms: the sums within groups are short, the others in float64.
    """
    groups = _groups(x.shape) if data_format == "NHWC" else 1
    if data_format == "NCHW":
        moments = tf.nn.moments(x, [2, 3])  # each image is a group
    elif groups > 1:
        moments = _fused_moments(x, groups)
    else:
        moments = _moments_of_rows(x)
    means, variances = (
        tf.reshape(tf.cast(each, tf.float64), [-1, tf.shape(each)[-1]]) for each in moments
    )
    mean, between = tf.nn.moments(means, [0])
    return mean, tf.reduce_mean(variances, 0) + between


def _groups(shape: tf.TensorShape) -> int:
    """Into how many groups the rows of a batch can be dealt, whatever the number of images."""
    _, height, width, channels = shape
    if height is None or width is None:
        return 1
    most = min(MOST_GROUPS, MOST_CHANNELS // max(channels, 1))
    pixels = height * width
    return max((k for k in range(1, most + 1) if pixels % k == 0), default=1)


def _moments_of_rows(x: tf.Tensor) -> Moments:
    """Mean and variance of as many groups of rows as are known to be alike once it runs."""
    rows, channels = tf.size(x) // tf.shape(x)[-1], x.shape[-1] or tf.shape(x)[-1]
    groups = tf.clip_by_value(tf.bitwise.bitwise_and(rows, -rows), 1, MOST_GROUPS)
    return tf.nn.moments(tf.reshape(x, [groups, -1, channels]), [1])


def _fused_moments(x: tf.Tensor, groups: int) -> Moments:
    """Mean and variance of each of some groups of rows, by the fused operation."""
    channels = x.shape[-1]
    dealt = tf.reshape(x, [1, 1, -1, groups * channels])
    ones, zeros = tf.ones([groups * channels]), tf.zeros([groups * channels])
    _, means, variances = _fused(dealt, ones, zeros, None, 1.0, "NHWC")
    count = tf.cast(tf.shape(dealt)[2], tf.float32)
    variances *= (count - 1.0) / count
    return tf.reshape(means, [groups, channels]), tf.reshape(variances, [groups, channels])


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
