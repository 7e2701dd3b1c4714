"""Layers of Keras under PyTorch that tell what their operations would save."""

import functools
from typing import Any

import keras
import torch

from deepseek_hpf.storage.kept_count import STORAGES, KeptCount
from deepseek_hpf.storage.saved_tensors_torch import SavedTensors, packed_of
from deepseek_hpf.storage.stored_call import Call


def counted(layer: keras.Layer, call: Call, path: str, count: KeptCount) -> Call:
    """The call of a layer, what its operations save being counted.

    Args:
        layer: The layer.
        call: Its present `call`.
        path: Its path.
        count: Where to note it.

    Returns:
        The wrapper. It saves everything as it is.
    """
    frozen = [variable.value for variable in layer.variables if not variable.trainable]
    packing = {
        storage: SavedTensors(storage, count.seed, count.smallest, frozen, count.known[storage])
        for storage in STORAGES
        if storage is not None
    }
    parameters = next(iter(packing.values()))

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not parameters.is_parameter(tensor):
            whole = tensor.untyped_storage()
            key = ("storage", whole.data_ptr())
            count.note(path, None, whole, whole.nbytes(), key)
            for storage, saved in packing.items():
                packed = packed_of(saved.pack(tensor))
                if packed is None:
                    count.note(path, storage, whole, whole.nbytes(), key)
                else:
                    count.note(path, storage, packed, packed.kept_bytes)
        return tensor if tensor.is_leaf else tensor.detach()

    @functools.wraps(call)
    def counting_call(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return call(*args, **kwargs)

    return counting_call
