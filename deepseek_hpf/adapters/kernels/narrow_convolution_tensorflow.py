"""Convolutions of narrow images as matrix products, in bfloat16.

oneDNN's convolutions work along a row of the image: at three to eight pixels most of a vector is
idle. The matrix product over all pixels of the batch has no such rows. A pointwise convolution is
one, forward and backward. Of a larger one it is the gradient of the filter, over the patches of
the input, that gains (up to 3 times, at 3 by 3 pixels and 512 channels); its result and the
gradient of its input gain nothing and stay convolutions. In float32 none of it pays.

The patches take as many times the input's memory as the filter has taps, while the gradient of
the filter is computed.
"""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels import activation_tensorflow
from deepseek_hpf.adapters.kernels.bias_tensorflow import add_bias, with_bias_and_activation
from deepseek_hpf.adapters.kernels.refusals_tensorflow import low_on_cpu_only, unplain_convolution

NARROW = 8  # pixels in a row: measured up to here


def applies(layer: keras.Layer) -> bool:
    """Whether a convolution takes narrow images, in bfloat16, pixel by pixel.

    Args:
        layer: A built `Conv2D`.

    Returns:
        True if it does. An activation with a kernel of its own gains more from that one.
    """
    width = _width(layer)
    is_narrow = width is not None and width <= NARROW
    plain = layer.groups == 1 and set(layer.strides) == {1} and layer.compute_dtype == "bfloat16"
    return bool(is_narrow and plain and not activation_tensorflow.applies(layer))


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own convolution.

    Args:
        layer: A `Conv2D`.

    Returns:
        The reason, or None.
    """
    return low_on_cpu_only(layer) or unplain_convolution(layer)


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer's convolution, bias and activation, by matrix products.

    Args:
        layer: A `Conv2D` that is not refused.
        call: Its present `call`; it serves images that are wide, or of unknown size.

    Returns:
        The wrapper.
    """

    def narrow_call(inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        kernel = tf.convert_to_tensor(layer.kernel)
        is_low = x.dtype == kernel.dtype == tf.bfloat16
        if not is_low or None in x.shape[1:] or x.shape[2] > NARROW:
            return call(inputs)
        if tuple(kernel.shape[:2]) == (1, 1):
            return _pointwise(layer, x, kernel)
        outputs = narrow_convolution(x, kernel, layer.padding.upper())
        return with_bias_and_activation(layer, outputs)

    return narrow_call


def narrow_convolution(x: tf.Tensor, kernel: tf.Tensor, padding: str) -> tf.Tensor:
    """A convolution of stride 1 that takes the gradient of its filter from patches.

    Args:
        x: Shape (batch, height, width, channels); all but the batch are known.
        kernel: Shape (rows, columns, channels, filters).
        padding: "SAME" or "VALID".

    Returns:
        Shape (batch, new height, new width, filters), the dtype of `x`.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.narrow_convolution_tensorflow import (
        ...     narrow_convolution,
        ... )
        >>> y = narrow_convolution(tf.ones((1, 3, 3, 2)), tf.ones((3, 3, 2, 1)), "SAME")
        >>> y[0, :, :, 0].numpy().astype(int).tolist()
        [[8, 12, 8], [12, 18, 12], [8, 12, 8]]
    """

    @tf.custom_gradient
    def convolve(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, 1, 1, 1],
                padding=padding,
            )
            dx.set_shape(x.shape)
            return dx, _filter_gradient(x, kernel.shape, upstream, padding)

        return tf.nn.conv2d(x, kernel, 1, padding), gradient

    result: tf.Tensor = convolve(x, kernel)
    return result


def _pointwise(layer: keras.Layer, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    channels, filters = kernel.shape[2:]
    # The bias next to the product: TensorFlow adds it in the same operation.
    outputs = tf.matmul(tf.reshape(x, [-1, channels]), tf.reshape(kernel, [channels, filters]))
    if layer.use_bias:
        outputs = add_bias(outputs, tf.convert_to_tensor(layer.bias))
    outputs = tf.reshape(outputs, [-1, *x.shape[1:3], filters])
    return outputs if layer.activation is None else layer.activation(outputs)


def _filter_gradient(
    x: tf.Tensor, shape: tf.TensorShape, upstream: tf.Tensor, padding: str
) -> tf.Tensor:
    rows, columns, channels, filters = shape
    if padding == "SAME":
        x = tf.pad(x, [[0, 0], _around(rows), _around(columns), [0, 0]])
    height, width = upstream.shape[1:3]
    shifted = [
        x[:, row : row + height, column : column + width]
        for row in range(rows)
        for column in range(columns)
    ]
    patches = tf.reshape(tf.concat(shifted, -1), [-1, rows * columns * channels])
    product = tf.matmul(patches, tf.reshape(upstream, [-1, filters]), transpose_a=True)
    return tf.reshape(product, shape)


def _around(taps: int) -> list[int]:
    """What TensorFlow pads on either side, at stride 1, to keep the size."""
    return [(taps - 1) // 2, taps // 2]


def _width(layer: keras.Layer) -> int | None:
    """Width of the images that a layer was built for."""
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    if shape is None or len(shape) != 4 or None in shape[1:]:
        return None
    return int(shape[2])
