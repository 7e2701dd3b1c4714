"""Casts batches on the host, and copies them to JAX's device."""

from collections.abc import Callable
from typing import Any

import jax
import keras
import numpy as np

from deepseek_hpf.data.batch_inputs import with_inputs

Ready = Callable[[], Any]


def placing(dtype: str | None) -> Callable[[Any], Ready]:
    """Returns what makes a batch ready.

    On a CPU, arrays stay NumPy's: JAX reads them where they are. With a `keras.distribution`, Keras
    copies them to the devices by its layouts.

    Args:
        dtype: Of floating inputs; None leaves them.

    Returns:
        A function from a batch to what gives it; copies go on meanwhile.
    """
    stays = jax.default_backend() == "cpu" or keras.distribution.distribution() is not None

    def place(batch: Any) -> Ready:
        own = with_inputs(batch, lambda leaf: _cast(leaf, dtype), lambda leaf: _cast(leaf, None))
        placed = own if stays else jax.device_put(own)
        return lambda: placed

    return place


def _cast(leaf: Any, dtype: str | None) -> Any:
    """A copy, since the pipeline may write the next batch into the same array."""
    if not isinstance(leaf, np.ndarray):
        return leaf  # sparse, or on a device already
    floating = dtype is not None and jax.numpy.issubdtype(leaf.dtype, np.floating)
    return leaf.astype(jax.numpy.dtype(dtype) if floating else leaf.dtype)
