"""Casts batches on the host, and copies them to PyTorch's device on a stream of their own."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import torch
from keras.src.backend.torch.core import get_device  # has no public access

from deepseek_hpf.data.batch_inputs import with_inputs

Ready = Callable[[], Any]


def placing(dtype: str | None) -> Callable[[Any], Ready]:
    """Returns what makes a batch ready.

    Args:
        dtype: Of floating inputs; None leaves them.

    Returns:
        A function from a batch to what gives it. It is called in the thread that reads ahead, and
        its result where the batch is used: there the device waits for the copy, not the program.
    """
    device = torch.device(get_device())
    to = None if dtype is None else getattr(torch, dtype)
    copy = _CudaCopy(device) if device.type == "cuda" else _plain_copy(device)

    def place(batch: Any) -> Ready:
        own = with_inputs(batch, lambda leaf: _cast(leaf, to), lambda leaf: _cast(leaf, None))
        return copy(own)

    return place


def _cast(leaf: Any, dtype: torch.dtype | None) -> Any:
    """A copy, since the pipeline may write the next batch into the same memory."""
    tensor = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        return leaf
    return tensor.to(dtype if tensor.is_floating_point() and dtype else tensor.dtype, copy=True)


def _plain_copy(device: torch.device) -> Callable[[Any], Ready]:
    def copy(batch: Any) -> Ready:
        placed = keras.tree.map_structure(lambda leaf: _moved(leaf, device), batch)
        return lambda: placed

    return copy


def _moved(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf


class _CudaCopy:
    """From pinned memory, on a stream of its own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, batch: Any) -> Ready:
        with torch.cuda.stream(self._stream):
            placed = keras.tree.map_structure(self._started, batch)
            copied = self._stream.record_event()

        def ready() -> Any:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            for leaf in keras.tree.flatten(placed):
                if isinstance(leaf, torch.Tensor):
                    leaf.record_stream(current)  # its memory is in use until that stream is done
            return placed

        return ready

    def _started(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        pinned = leaf if leaf.is_cuda else leaf.pin_memory()
        return pinned.to(self._device, non_blocking=True)
