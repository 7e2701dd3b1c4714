"""Which kernels may serve a layer, by its exact class: subclasses may compute something else."""

import keras

from deepseek_hpf.adapters.kernels import (
    activation_tensorflow,
    batch_normalization_tensorflow,
    depthwise_tensorflow,
    grouped_convolution_tensorflow,
    layer_norm_tensorflow,
    lstm_tensorflow,
    narrow_convolution_tensorflow,
)
from deepseek_hpf.adapters.kernels.kernel import Kernel

_ACTIVATION = Kernel(
    "activation",
    activation_tensorflow.refuses,
    activation_tensorflow.wrap,
    activation_tensorflow.applies,
)
_GROUPED = Kernel(
    "grouped convolution",
    grouped_convolution_tensorflow.refuses,
    grouped_convolution_tensorflow.wrap,
    grouped_convolution_tensorflow.applies,
)
_NARROW = Kernel(
    "narrow convolution",
    narrow_convolution_tensorflow.refuses,
    narrow_convolution_tensorflow.wrap,
    narrow_convolution_tensorflow.applies,
)
_DEPTHWISE = Kernel(
    "depthwise convolution",
    depthwise_tensorflow.refuses,
    depthwise_tensorflow.wrap,
    depthwise_tensorflow.applies,
)
_BATCH_NORM = Kernel(
    "batch normalization",
    batch_normalization_tensorflow.refuses,
    batch_normalization_tensorflow.wrap,
)
_LAYER_NORM = Kernel(
    "layer normalization", layer_norm_tensorflow.refuses, layer_norm_tensorflow.wrap
)
_LSTM = Kernel("LSTM", lstm_tensorflow.refuses, lstm_tensorflow.wrap)
_CANDIDATES: dict[type[keras.Layer], tuple[Kernel, ...]] = {
    keras.layers.Activation: (_ACTIVATION,),
    keras.layers.Dense: (_ACTIVATION,),
    keras.layers.EinsumDense: (_ACTIVATION,),
    keras.layers.Conv2D: (_GROUPED, _NARROW, _ACTIVATION),
    keras.layers.DepthwiseConv2D: (_DEPTHWISE, _ACTIVATION),
    keras.layers.BatchNormalization: (_BATCH_NORM,),
    keras.layers.LayerNormalization: (_LAYER_NORM,),
    keras.layers.LSTM: (_LSTM,),
}


def candidates(layer: keras.Layer) -> dict[str, Kernel]:
    """Kernels for a layer, the most rewarding first; the first that does not refuse is the one.

    Args:
        layer: Any layer, built.

    Returns:
        Its name to the kernel. Empty for classes without kernels.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates
        >>> list(candidates(keras.layers.DepthwiseConv2D(3)))
        ['depthwise convolution', 'activation']
    """
    return {kernel.name: kernel for kernel in _CANDIDATES.get(type(layer), ())}
