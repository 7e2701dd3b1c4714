"""A layer's `call` that keeps less for its backward pass, on whatever back end is at hand."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras

Call = Callable[..., Any]

# What packs, by back end.
MODULES = {
    "jax": "deepseek_hpf.storage.saved_calls_jax",
    "tensorflow": "deepseek_hpf.storage.saved_calls_tensorflow",
    "torch": "deepseek_hpf.storage.saved_calls_torch",
}


@dataclass(frozen=True)
class Settings:
    """How activations are kept.

    Args:
        storage: `"int8"`, `"int4"` or `"sparse"`.
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.
        known: What the layers of a model have packed, so that each tensor is packed once.
    """

    storage: str
    seed: int
    smallest: int
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)


class StoredCalls(Protocol):
    """What a back end's module offers."""

    def refusal(self, layer: keras.Layer, storage: str) -> str | None:
        """Why a layer keeps what it keeps; None where it can keep less."""

    def wrap(self, layer: keras.Layer, call: Call, settings: Settings) -> Call:
        """The call of a layer that keeps less."""


def stored_calls() -> StoredCalls | None:
    """What packs under the back end at hand.

    Returns:
        A module; None where there is none.
    """
    name = MODULES.get(keras.backend.backend())
    return None if name is None else importlib.import_module(name)
