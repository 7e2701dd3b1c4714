"""Grouped convolutions with one channel a group, as the depthwise convolutions that they are.

TensorFlow has no grouped convolution on CPUs: Keras hands it to XLA, whose code for it is many
times slower than oneDNN's for depthwise ones. ConvNeXt is built of such layers.
"""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.bias_tensorflow import with_bias_and_activation
from deepseek_hpf.adapters.kernels.depthwise_tensorflow import depthwise_conv
from deepseek_hpf.adapters.kernels.refusals_tensorflow import on_cpu_only, unplain_convolution


def applies(layer: keras.Layer) -> bool:
    """Whether a convolution has groups.

    Args:
        layer: A `Conv2D`.

    Returns:
        True if it has several.
    """
    return bool(layer.groups != 1)


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own convolution.

    Args:
        layer: A built `Conv2D`.

    Returns:
        The reason, or None.
    """
    if not applies(layer):
        return "it has one group"
    if not layer.built or layer.kernel.shape[2] != 1:
        return "its groups have several channels"
    if reason := unplain_convolution(layer):
        return reason
    if layer.compute_dtype not in ("bfloat16", "float32"):
        return f"the layer computes in {layer.compute_dtype}"
    return on_cpu_only(layer)


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer's convolution, bias and activation, by the depthwise operation.

    Args:
        layer: A `Conv2D` that is not refused.
        call: Its present `call`; what it does is done anew.

    Returns:
        The wrapper.
    """

    def grouped_call(inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        kernel = tf.convert_to_tensor(layer.kernel)
        if x.dtype != kernel.dtype:
            return call(inputs)
        height, width, _, filters = kernel.shape
        kernel = tf.reshape(kernel, [height, width, layer.groups, filters // layer.groups])
        outputs = depthwise_conv(x, kernel, layer.strides[0], layer.padding.upper())
        # An empty batch would come back with the input's height and width.
        shape = layer.compute_output_shape(x.shape)[1:]
        if None not in shape:
            outputs = tf.reshape(outputs, [tf.shape(x)[0], *shape])
        return with_bias_and_activation(layer, outputs)

    return grouped_call
