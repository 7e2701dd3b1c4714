"""Layers of Keras under PyTorch that compute anew what their backward passes need."""

import functools
from typing import Any

import keras
import torch
from keras.src.backend import in_symbolic_scope  # has no public access
from torch.utils.checkpoint import checkpoint

from deepseek_hpf.storage.repeatable_call import RepeatableCall
from deepseek_hpf.storage.stored_call import Call, Settings


def refusal(layer: keras.Layer, storage: str) -> str | None:
    """Why a layer keeps what it keeps.

    Args:
        layer: Any layer, built.
        storage: `"recompute"`.

    Returns:
        None: any call can be run again.
    """
    return None


def wrap(layer: keras.Layer, call: Call, settings: Settings) -> Call:
    """The call of a layer, run again in the backward pass.

    Args:
        layer: The layer.
        call: Its present `call`.
        settings: How.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def recomputing_call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or in_symbolic_scope():
            return call(*args, **kwargs)
        return checkpoint(RepeatableCall(layer, call), *args, use_reentrant=False, **kwargs)

    return recomputing_call
