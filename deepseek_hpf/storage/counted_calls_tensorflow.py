"""Layers of Keras under TensorFlow that tell what their backward passes would keep."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.storage import max_pool_tensorflow
from deepseek_hpf.storage.backward_graph_tensorflow import BackwardGraph
from deepseek_hpf.storage.kept_count import STORAGES, KeptCount
from deepseek_hpf.storage.kept_tensors_tensorflow import KeptTensors
from deepseek_hpf.storage.packed_gradient_tensorflow import differentiated
from deepseek_hpf.storage.packed_tensors_tensorflow import Form, Packed
from deepseek_hpf.storage.saved_calls_tensorflow import is_left_alone, running
from deepseek_hpf.storage.stored_call import Call, Settings
from deepseek_hpf.storage.tensor_origin_tensorflow import (
    buffer_of,
    bytes_of,
    is_held_by_the_caller,
    is_of_parameters,
    values_of,
)


def counted(layer: keras.Layer, call: Call, path: str, count: KeptCount) -> Call:
    """The call of a layer, what its backward pass needs being counted when a step is traced.

    Args:
        layer: The layer.
        call: Its present `call`.
        path: Its path.
        count: Where to note it.

    Returns:
        The wrapper, for a graph with gradients. It keeps everything as it is.
    """
    noting = _Noting(path, count)

    @functools.wraps(call)
    def counting_call(*args: Any, **kwargs: Any) -> Any:
        if is_left_alone(kwargs):
            return call(*args, **kwargs)
        with running():
            if type(layer) in max_pool_tensorflow.CLASSES:
                return noting.pooled(layer, call, *args, **kwargs)
            return differentiated(call, args, kwargs, noting.choose)

    return counting_call


class _Noting:
    def __init__(self, path: str, count: KeptCount):
        self._path, self._count = path, count
        self._settings = {
            storage: Settings(storage, count.seed, count.smallest)
            for storage in STORAGES
            if storage is not None
        }

    def choose(self, backward: BackwardGraph, inputs: Sequence[tf.Tensor]) -> None:
        needed = [kept.tensor for kept in backward.kept.values()]
        for tensor in needed:
            self._whole(None, tensor)
        for storage, settings in self._settings.items():
            kept = KeptTensors(backward, inputs, settings)
            if kept.is_whole:
                for tensor in needed:
                    self._whole(storage, tensor)
            else:
                for form in kept.forms:
                    self._form(storage, form)

    def pooled(self, layer: keras.Layer, call: Call, inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        y = call(x)
        for storage in STORAGES:
            is_exact = storage == "sparse"
            bits = max_pool_tensorflow.bits_of_places(layer, x, is_exact) if storage else None
            if bits is None:
                self._whole(storage, x)
                self._whole(storage, y)
            else:
                self._count.note(self._path, storage, y, math.ceil(values_of(y) * bits / 8))
        return y

    def _form(self, storage: str, form: Form) -> None:
        if isinstance(form, Packed):
            values = math.prod(form.shape) if isinstance(form.shape, list) else 0
            size = form.kept_bytes(values)
            self._count.note(self._path, storage, form.parts[0], size)
        else:
            self._whole(storage, form.tensor)  # type: ignore[attr-defined]

    def _whole(self, storage: str | None, tensor: tf.Tensor) -> None:
        buffer = buffer_of(tensor)
        dtype = buffer.dtype
        is_number = dtype.is_floating or dtype.is_integer or dtype == tf.bool
        held = buffer.op.type == "Const" or is_held_by_the_caller(buffer)
        if is_number and not held and not is_of_parameters(buffer):
            self._count.note(
                self._path, storage, buffer, bytes_of(buffer), key=("buffer", id(buffer))
            )
