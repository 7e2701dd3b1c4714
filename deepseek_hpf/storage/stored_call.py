"""A layer's `call` that keeps less for its backward pass, on whatever back end is at hand."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import keras

from deepseek_hpf.storage.kept_count import KeptCount

Call = Callable[..., Any]

# What packs, by back end.
MODULES = {
    "jax": "deepseek_hpf.storage.saved_calls_jax",
    "tensorflow": "deepseek_hpf.storage.saved_calls_tensorflow",
    "torch": "deepseek_hpf.storage.saved_calls_torch",
}
# What recomputes. Under JAX it is one thing: what is kept is chosen of one trace.
RECOMPUTING = {
    "jax": "deepseek_hpf.storage.saved_calls_jax",
    "tensorflow": "deepseek_hpf.storage.recomputed_calls_tensorflow",
    "torch": "deepseek_hpf.storage.recomputed_calls_torch",
}
# What tells how much would be kept, by back end.
COUNTING = {
    "jax": "deepseek_hpf.storage.counted_calls_jax",
    "tensorflow": "deepseek_hpf.storage.counted_calls_tensorflow",
    "torch": "deepseek_hpf.storage.counted_calls_torch",
}
SMALLEST = 4096  # bytes: packing less than that costs more than it brings


@dataclass(frozen=True)
class Settings:
    """How activations are kept.

    Args:
        storage: `"int8"`, `"int4"`, `"sparse"` or `"recompute"`.
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.
        known: What the layers of a model have packed, so that each tensor is packed once.
    """

    storage: str
    seed: int = 0
    smallest: int = SMALLEST
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


class StoredCalls(Protocol):
    """What a back end's module offers."""

    def refusal(self, layer: keras.Layer, storage: str) -> str | None:
        """Why a layer keeps what it keeps; None where it can keep less."""

    def wrap(self, layer: keras.Layer, call: Call, settings: Settings) -> Call:
        """The call of a layer that keeps less."""


class CountedCalls(Protocol):
    """What a back end's module of `COUNTING` offers."""

    def counted(self, layer: keras.Layer, call: Call, path: str, count: KeptCount) -> Call:
        """The call of a layer that notes what would be kept, and keeps everything."""


def counted_calls() -> CountedCalls:
    """What counts under the back end at hand, which is one of `COUNTING`.

    Returns:
        A module.
    """
    return cast(CountedCalls, importlib.import_module(COUNTING[keras.backend.backend()]))


def stored_calls(storage: str) -> StoredCalls | None:
    """What keeps less under the back end at hand.

    Args:
        storage: As of `Settings`.

    Returns:
        A module; None where there is none.
    """
    modules = RECOMPUTING if storage == "recompute" else MODULES
    name = modules.get(keras.backend.backend())
    return None if name is None else importlib.import_module(name)
