"""Layers of Keras under TensorFlow, whose backward passes keep less."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend import in_symbolic_scope
from keras.src.backend.common import global_state  # the running call has no public access
from keras.src.ops import numpy as keras_ops  # the classes of operations have none either

from deepseek_hpf.storage import max_pool_tensorflow
from deepseek_hpf.storage.packed_gradient_tensorflow import differentiated, packing
from deepseek_hpf.storage.stored_call import Call, Settings

# Whose results tell of each value no more than a bit.
_WITH_MASKS = ("leaky_relu", "relu", "relu6")
# Linear layers, which keep nothing else.
_KEEP_THEIR_INPUT = (
    *(keras.layers.Dense, keras.layers.EinsumDense),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose),
    *(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
)
# Operations that are no layers.
_KEEPING = (keras_ops.Einsum, keras_ops.Matmul, keras_ops.Multiply, keras_ops.Square)
_running = threading.local()


def refusal(layer: keras.Layer, storage: str) -> str | None:
    """Why a layer keeps what it keeps.

    Args:
        layer: Any layer, built.
        storage: Packed or exact.

    Returns:
        The reason, or None.
    """
    if any(isinstance(each, keras.layers.RNN) for each in layer._flatten_layers()):
        return "it keeps what its loop has computed, in lists"
    if storage == "sparse" and type(layer) is keras.layers.Activation:
        name = getattr(layer.activation, "__name__", repr(layer.activation))
        if name not in _WITH_MASKS:
            return f"what {name} keeps has no exact form of fewer bytes"
    if type(layer) in _KEEP_THEIR_INPUT:
        for name in _others_that_keep_the_input(layer):
            return f"{name!r} keeps its input as it is"
    return None


def _others_that_keep_the_input(layer: keras.Layer) -> Iterator[str]:
    """Names of operations of a functional model that are not compressed and take what it takes."""
    for node in layer._inbound_nodes:
        for tensor in node.input_tensors:
            for other in tensor._keras_history.operation._outbound_nodes:
                operation = other.operation
                takes = any(each is tensor for each in other.input_tensors)
                if takes and isinstance(operation, (*_KEEPING, keras.layers.RNN)):
                    yield operation.name


def wrap(layer: keras.Layer, call: Call, settings: Settings) -> Call:
    """The call of a layer, what it keeps for its backward pass being packed.

    Args:
        layer: The layer.
        call: Its present `call`.
        settings: How.

    Returns:
        The wrapper. Layers that it calls may have wrappers of their own, for which it counts.
    """
    compute = _in_graph(layer, call, settings)
    eagerly = tf.function(_in_graph(layer, call, settings, owns_arguments=True), autograph=False)

    @functools.wraps(call)
    def saving_call(*args: Any, **kwargs: Any) -> Any:
        if is_left_alone(kwargs):
            return call(*args, **kwargs)
        with running():
            return (eagerly if tf.executing_eagerly() else compute)(*args, **kwargs)

    return saving_call


def is_left_alone(kwargs: dict[str, Any]) -> bool:
    """Whether a call is no training, or within one that counts for it.

    Args:
        kwargs: Its keyword arguments.

    Returns:
        True where there is nothing to do.
    """
    return getattr(_running, "call", False) or _is_inference(kwargs) or in_symbolic_scope()


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Has a call count for those that it makes."""
    _running.call = True
    try:
        yield
    finally:
        _running.call = False


def _in_graph(
    layer: keras.Layer, call: Call, settings: Settings, owns_arguments: bool = False
) -> Call:
    if type(layer) in max_pool_tensorflow.CLASSES:
        return max_pool_tensorflow.wrap(layer, call, is_exact=settings.storage == "sparse")

    def compute(*args: Any, **kwargs: Any) -> Any:
        return differentiated(call, args, kwargs, packing(settings, owns_arguments))

    return compute


def _is_inference(kwargs: dict[str, Any]) -> bool:
    running = global_state.get_global_attribute("current_call_ctx")
    said = kwargs.get("training")
    return (running and running.get_value("training") if said is None else said) is False
