"""The compiled functions of a model: making them anew, so that none runs a trace of before."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from deepseek_hpf.adapters.undo import UndoLog

_FUNCTIONS = ("train_function", "test_function", "predict_function")


def remake_compiled_functions(model: keras.Model, log: UndoLog) -> None:
    """Makes anew what the model had compiled; what it had not yet, it will compile by itself.

    On JAX the steps become function objects of their own first: `jax.jit` runs the old trace of a
    bound method for as long as that lives.

    Args:
        model: The model; its training step is already a function object of its own.
        log: Where to write how to take it back.
    """
    if keras.backend.backend() == "jax":
        log.set_on_instance(model, "test_step", _own_function(model.test_step))
    for name in _FUNCTIONS:
        present = getattr(model, name, None)
        if present is not None:
            log.record(functools.partial(setattr, model, name, present))
            getattr(model, f"make_{name}")(force=True)


def forget_compiled_functions(model: keras.Model) -> None:
    """Makes anew what the model had compiled, for good.

    Args:
        model: The model.
    """
    for name in _FUNCTIONS:
        if getattr(model, name, None) is not None:
            getattr(model, f"make_{name}")(force=True)


def _own_function(step: Callable[..., Any]) -> Callable[..., Any]:
    original = getattr(step, "__wrapped_step__", step)

    def own_step(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    own_step.__wrapped_step__ = original  # type: ignore[attr-defined]
    return own_step
