"""Summaries of whole tensors, in chunks of few sizes: nothing is compiled twice, little is held."""

import importlib
from typing import Any

import keras

from deepseek_hpf.profiler.statistics import Summary
from deepseek_hpf.profiler.tensors import dtype_of as dtype_of
from deepseek_hpf.profiler.tensors import is_float as is_float
from deepseek_hpf.profiler.tensors import size_of as size_of

# A tensor is cut into chunks of the last size; its rest is padded with zeros to the next size.
_SIZES = (2**10, 2**14, 2**17, 2**20)


def tapping() -> Any:
    """The taps of the running back end, a module."""
    return importlib.import_module(f"deepseek_hpf.profiler.tapping_{keras.backend.backend()}")


def summarize(tensor: Any, factor: float = 1.0) -> Summary:
    """Reduces a tensor to its summary.

    Args:
        tensor: Float tensor of any shape, concrete.
        factor: What the values are multiplied with first, to take a loss scale back.

    Returns:
        The summary, in the dtype that the tensor came in.
    """
    taps = tapping()
    summary = Summary(dtype_of(tensor))
    size = size_of(tensor)
    flat = keras.ops.reshape(tensor, (-1,))
    for start in range(0, size, _SIZES[-1]):
        chunk = flat[start : start + _SIZES[-1]]
        count = min(size - start, _SIZES[-1])
        padding = next(s for s in _SIZES if s >= count) - count
        summary.add(taps.reduce(_float32(chunk, factor, padding)), count, padding)
    return summary


def _float32(chunk: Any, factor: float, padding: int) -> Any:
    if dtype_of(chunk) == "float64":
        # What float32 cannot hold is out of range for every format, but it is finite.
        bound = 3.4e38
        clipped = keras.ops.clip(chunk, -bound, bound)
        chunk = keras.ops.where(keras.ops.isfinite(chunk), clipped, chunk)
    chunk = keras.ops.cast(chunk, "float32")
    if factor != 1.0:
        chunk = chunk * factor
    return keras.ops.pad(chunk, (0, padding)) if padding else chunk
