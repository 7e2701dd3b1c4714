"""Whether a graph is being made, which only TensorFlow lets one forget."""

import contextlib
import importlib
from typing import Any

import keras


def outside_of_graphs() -> contextlib.AbstractContextManager[None]:
    """Runs eagerly what is inside, in the midst of a trace too."""
    module = _tensorflow()
    return module.outside_of_graphs() if module else contextlib.nullcontext()


def is_tracing() -> bool:
    """Returns whether a graph is being made; what JAX traces is no matter here."""
    module = _tensorflow()
    return bool(module and module.is_tracing())


def _tensorflow() -> Any:
    """What only TensorFlow needs; None on the other back ends."""
    if keras.backend.backend() != "tensorflow":
        return None
    return importlib.import_module("deepseek_hpf.optimizers.apply_tensorflow")
