"""Which kernels may serve a layer, by its exact class: subclasses may compute something else."""

from types import ModuleType

import keras

from deepseek_hpf.adapters.kernels import (
    activation_tensorflow,
    depthwise_tensorflow,
    grouped_convolution_tensorflow,
    layer_norm_tensorflow,
    lstm_tensorflow,
)

_CANDIDATES: dict[type[keras.Layer], dict[str, ModuleType]] = {
    keras.layers.Activation: {"activation": activation_tensorflow},
    keras.layers.Dense: {"activation": activation_tensorflow},
    keras.layers.EinsumDense: {"activation": activation_tensorflow},
    keras.layers.Conv2D: {
        "grouped convolution": grouped_convolution_tensorflow,
        "activation": activation_tensorflow,
    },
    keras.layers.DepthwiseConv2D: {
        "depthwise convolution": depthwise_tensorflow,
        "activation": activation_tensorflow,
    },
    keras.layers.LayerNormalization: {"layer normalization": layer_norm_tensorflow},
    keras.layers.LSTM: {"LSTM": lstm_tensorflow},
}


def candidates(layer: keras.Layer) -> dict[str, ModuleType]:
    """Kernels for a layer, the most rewarding first; the first that does not refuse is the one.

    Args:
        layer: Any layer, built.

    Returns:
        What the kernel is called, to a module with `refuses(layer)`, a reason or None, and
        `wrap(layer, call)`, the new `call`. Empty for classes without kernels.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates
        >>> list(candidates(keras.layers.DepthwiseConv2D(3)))
        ['depthwise convolution', 'activation']
    """
    return _CANDIDATES.get(type(layer), {})
