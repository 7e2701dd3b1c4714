"""Depthwise convolutions whose slow bfloat16 gradients are taken in float32.

oneDNN has no fast bfloat16 code for two of the gradients of a depthwise convolution: that of the
input where the stride is above 1 (up to 25 times slower than float32's), and that of the filter
where it is larger than 3 by 3 (3 to 4 times). All else stays in bfloat16, where it is faster.
"""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.bias_tensorflow import with_bias_and_activation
from deepseek_hpf.adapters.kernels.refusals_tensorflow import low_on_cpu_only, unplain_convolution

SLOW_FILTER = 9  # taps: above this, the gradient of the filter is slow


def applies(layer: keras.Layer) -> bool:
    """Whether a layer has a gradient that is slow in bfloat16, and computes in bfloat16.

    Args:
        layer: A `DepthwiseConv2D`.

    Returns:
        True if it has one.
    """
    slow = max(layer.strides) > 1 or _taps(layer.kernel_size) > SLOW_FILTER
    return bool(layer.compute_dtype == "bfloat16" and slow)


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own convolution.

    Args:
        layer: A `DepthwiseConv2D`.

    Returns:
        The reason, or None.
    """
    if reason := low_on_cpu_only(layer) or unplain_convolution(layer):
        return reason
    if layer.strides[0] == 1 and _taps(layer.kernel_size) <= SLOW_FILTER:
        return "its gradients are fast in bfloat16 already"
    return None


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer's convolution, bias and activation, with gradients in the faster dtype.

    Args:
        layer: A `DepthwiseConv2D` that is not refused.
        call: Its present `call`; what it does is done anew.

    Returns:
        The wrapper.
    """

    def depthwise_call(inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        kernel = tf.convert_to_tensor(layer.kernel)
        if x.dtype != tf.bfloat16 or kernel.dtype != tf.bfloat16:
            return call(inputs)
        outputs = depthwise_conv(x, kernel, layer.strides[0], layer.padding.upper())
        return with_bias_and_activation(layer, outputs)

    return depthwise_call


def depthwise_conv(x: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """A depthwise convolution, differentiated in whichever dtype is faster.

    Args:
        x: Shape (batch, height, width, channels), bfloat16.
        kernel: Shape (height, width, channels, multiplier), bfloat16.
        stride: The same in both directions.
        padding: "SAME" or "VALID".

    Returns:
        Shape (batch, new height, new width, channels * multiplier), bfloat16.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.depthwise_tensorflow import depthwise_conv
        >>> x = tf.ones((1, 4, 4, 2), "bfloat16")
        >>> y = depthwise_conv(x, tf.ones((3, 3, 2, 1), "bfloat16"), 2, "VALID")
        >>> y.numpy().astype(int).tolist()
        [[[[9, 9]]]]
    """
    strides = [1, stride, stride, 1]
    of_input = tf.float32 if stride > 1 else x.dtype
    of_filter = tf.float32 if _taps(kernel.shape[:2]) > SLOW_FILTER else x.dtype

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dx = tf.nn.depthwise_conv2d_backprop_input(
                tf.shape(x),
                tf.cast(kernel, of_input),
                tf.cast(upstream, of_input),
                strides,
                padding,
            )
            dkernel = tf.nn.depthwise_conv2d_backprop_filter(
                tf.cast(x, of_filter),
                tf.shape(kernel),
                tf.cast(upstream, of_filter),
                strides,
                padding,
            )
            dx.set_shape(x.shape)
            dkernel.set_shape(kernel.shape)
            return tf.cast(dx, x.dtype), tf.cast(dkernel, kernel.dtype)

        return tf.nn.depthwise_conv2d(x, kernel, strides, padding), gradient

    result: tf.Tensor = convolve(x, kernel)
    return result


def _taps(size: Any) -> int:
    height, width = size
    return int(height * width)
