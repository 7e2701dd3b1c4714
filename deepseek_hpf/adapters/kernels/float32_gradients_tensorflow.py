"""Low-precision results with float32 gradients, under TensorFlow."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def differentiated_in_float32(
    function: Callable[..., tf.Tensor], x: tf.Tensor, *weights: tf.Tensor
) -> tf.Tensor:
    """Computes a function in the dtype of its input, and its gradients in float32.

    Args:
        function: Of the input and the weights, all of one dtype; it uses no variables.
        x: The input, float16 or bfloat16.
        weights: float32.

    Returns:
        The function's result. The gradient of `x` has the dtype of `x`, those of the weights are
        float32 and never anything else.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.adapters.kernels.float32_gradients_tensorflow import (
        ...     differentiated_in_float32,
        ... )
        >>> x, weight = tf.constant([[1e-4]], "float16"), tf.constant([[1.0]])
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(weight)
        ...     y = 1e-4 * differentiated_in_float32(tf.matmul, x, weight)
        >>> y.dtype.name, f"{tape.gradient(y, weight).numpy().item():.1e}"
        ('float16', '1.0e-08')
    """

    @tf.custom_gradient
    def apply(x: tf.Tensor, *weights: tf.Tensor) -> Any:
        low = [tf.cast(value, x.dtype) for value in (x, *weights)]

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            wide = [tf.cast(value, tf.float32) for value in low]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                # Not needed, and pruned from a graph.
                y = function(*wide)
            dx, *dweights = tape.gradient(y, wide, tf.cast(upstream, tf.float32))
            return [tf.cast(dx, x.dtype), *dweights]

        return function(*low), gradient

    # Of variables the values: the operation is given what it would otherwise look for by itself.
    result: tf.Tensor = apply(*(tf.convert_to_tensor(value) for value in (x, *weights)))
    return result
