"""Layers that compute in 16 bits, and their gradients in float32.

The result is, bit for bit, what the layer computes. For the gradients, the incoming gradient and
what the forward pass has multiplied, input and weights as rounded to 16 bits, are raised to
float32; products and sums are float32, and the gradients of the weights stay so: none is lost for
being below float16's 6e-8, or rounded to the three digits of bfloat16. It is the gradient at the
point where the forward pass was evaluated, not at the float32 weights; and as its factors have 16
bits, hardware that multiplies float32 in TF32 loses nothing. The gradient of the input is rounded
once, to the input's dtype: whoever made the input takes no other.

A separable convolution computes what is between its two convolutions anew, in float32. Under
PyTorch without a compiler, and TensorFlow without a graph, every layer computes its result anew.
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src import backend  # scopes of autocasting have no public access

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.layer_dtype import is_low

CLASSES: frozenset[type[keras.Layer]] = frozenset(
    {
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Conv3DTranspose,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    }
)


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer computes its gradients in its own dtype.

    Args:
        layer: A built layer.

    Returns:
        The reason, or None.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.kernels.float32_gradients import refuses
        >>> refuses(keras.layers.LSTM(2))
        'there is no such kernel for LSTM'
    """
    if type(layer) not in CLASSES:
        return f"there is no such kernel for {type(layer).__name__}"
    if layer.dtype_policy.quantization_mode is not None:
        return f"it is quantized ({layer.dtype_policy.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights"
    with backend.AutocastScope(None):
        values = [variable.value for variable in layer.variables]
    held = {keras.backend.standardize_dtype(value.dtype) for value in values}
    if held != {"float32"}:
        return f"its weights are {', '.join(sorted(held))}, and so are their gradients"
    if not layer.autocast:
        return "it does not cast its weights"
    return None


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer with gradients in float32, where it computes in 16 bits.

    Which it does is seen when it is called: while it computes in float32, or is refused by now, it
    is what it was.

    Args:
        layer: A layer that is not refused.
        call: Its present `call`, Keras's own.

    Returns:
        The wrapper.
    """
    function = _without_activation(layer, call)

    @functools.wraps(call)
    def float32_gradients_call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_low(inputs, layer.compute_dtype) or refuses(layer) is not None:
            return call(inputs, *args, **kwargs)
        with backend.AutocastScope(None):
            weights = [keras.ops.convert_to_tensor(variable) for variable in layer.variables]
        outputs = _differentiated_in_float32()(function, inputs, *weights)
        return outputs if layer.activation is None else layer.activation(outputs)

    return float32_gradients_call


def _is_low(inputs: Any, dtype: str) -> bool:
    if isinstance(inputs, keras.KerasTensor) or not is_low(dtype):
        return False
    return bool(keras.backend.standardize_dtype(inputs.dtype) == dtype)


def _without_activation(layer: keras.Layer, call: Call) -> Call:
    """What a layer computes before its activation, as a function of its input and its weights."""
    variables = layer.variables

    def function(x: Any, *weights: Any) -> Any:
        values = zip(variables, weights, strict=True)
        dtype = keras.backend.standardize_dtype(x.dtype)
        with (
            _activation_off(layer),
            backend.AutocastScope(dtype),
            keras.StatelessScope(values, initialize_variables=False),
        ):
            return call(x)

    return function


@contextmanager
def _activation_off(layer: keras.Layer) -> Iterator[None]:
    activation = layer.activation
    layer.activation = None
    try:
        yield
    finally:
        layer.activation = activation


def _differentiated_in_float32() -> Callable[..., Any]:
    module = f"deepseek_hpf.adapters.kernels.float32_gradients_{keras.backend.backend()}"
    function: Callable[..., Any] = importlib.import_module(module).differentiated_in_float32
    return function
