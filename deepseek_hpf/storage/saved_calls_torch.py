"""Layers of Keras under PyTorch, whose operations save less for their backward passes."""

import functools
from typing import Any

import keras

from deepseek_hpf.storage.saved_tensors_torch import SavedTensors
from deepseek_hpf.storage.stored_call import Call, Settings


def refusal(layer: keras.Layer, storage: str) -> str | None:
    """Why a layer keeps what it keeps.

    Args:
        layer: Any layer, built.
        storage: Packed or exact.

    Returns:
        None: whatever an operation saves can be packed.
    """
    return None


def wrap(layer: keras.Layer, call: Call, settings: Settings) -> Call:
    """The call of a layer, what its operations save being packed.

    Args:
        layer: The layer.
        call: Its present `call`.
        settings: How.

    Returns:
        The wrapper. Layers that it calls may have wrappers of their own, which count for them.
    """
    frozen = [variable.value for variable in layer.variables if not variable.trainable]
    saved = SavedTensors(settings.storage, settings.seed, settings.smallest, frozen, settings.known)

    @functools.wraps(call)
    def saving_call(*args: Any, **kwargs: Any) -> Any:
        with saved.scope():
            return call(*args, **kwargs)

    return saving_call
