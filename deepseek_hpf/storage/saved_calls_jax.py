"""Layers of Keras under JAX, whose backward passes keep less."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax
import keras
from keras.src.backend import in_symbolic_scope
from keras.src.backend.common import global_state  # the running call has no public access

from deepseek_hpf.storage.derivative_jax import derivative
from deepseek_hpf.storage.kept_values_jax import kept_values
from deepseek_hpf.storage.packed_once_jax import PackedOnce
from deepseek_hpf.storage.pure_call_jax import PureCall, pure_call
from deepseek_hpf.storage.stored_call import Call, Settings

# Whether a layer of Keras is being traced: what its own layers keep counts for it.
_within_keras = contextvars.ContextVar("within_keras", default=False)


def refusal(layer: keras.Layer, storage: str) -> str | None:
    """Why a layer keeps what it keeps.

    Args:
        layer: Any layer, built.
        storage: Packed or exact.

    Returns:
        None: whatever can be traced can be packed.
    """
    return None


def wrap(layer: keras.Layer, call: Call, settings: Settings) -> Call:
    """The call of a layer, what it keeps for its backward pass being packed.

    Args:
        layer: The layer.
        call: Its present `call`.
        settings: How.

    Returns:
        The wrapper. Within a layer of Keras the wrappers of its own layers have nothing to do; what
        a layer of somebody else's calls is packed by itself.
    """

    @functools.wraps(call)
    def saving_call(*args: Any, **kwargs: Any) -> Any:
        pure = pure_training_call(layer, call, args, kwargs)
        if pure is None:
            return call(*args, **kwargs)
        return pure.finish(_packing(pure, settings)(pure.captured, pure.arrays))

    return saving_call


def pure_training_call(
    layer: keras.Layer, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> PureCall | None:
    """The call of a layer that is trained, as a pure function.

    Args:
        layer: The layer.
        call: Its `call`.
        args: Positional arguments.
        kwargs: Named arguments.

    Returns:
        The call; None where there is nothing to do, or it is not pure.
    """
    if _is_inference(kwargs) or in_symbolic_scope() or _within_keras.get():
        return None
    with _inside(layer):
        return pure_call(layer, call, args, kwargs)


@contextlib.contextmanager
def _inside(layer: keras.Layer) -> Iterator[None]:
    token = _within_keras.set(type(layer).__module__.startswith("keras."))
    try:
        yield
    finally:
        _within_keras.reset(token)


def _is_inference(kwargs: dict[str, Any]) -> bool:
    running = global_state.get_global_attribute("current_call_ctx")
    said = kwargs.get("training")
    return (running and running.get_value("training") if said is None else said) is False


def _packing(pure: PureCall, settings: Settings) -> Any:
    """The same function, whose derivative packs."""
    found = derivative(pure)
    kept = kept_values(found, pure.variables, settings)
    compute_all = found.forward(kept.variables)
    remake = found.part(kept.variables, found.kept)

    def forward(captured: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, values = compute_all([*captured, *arrays])
        return kept.pack(outputs, values, PackedOnce(settings.known))

    def backward(packed: list[Any], gradients: list[Any]) -> tuple[list[Any], list[Any]]:
        floats = [gradient for gradient in gradients if gradient.dtype != jax.dtypes.float0]
        moved = found.backward(remake(*kept.restore(packed, floats)), gradients)
        return moved[: len(pure.captured)], moved[len(pure.captured) :]

    @jax.custom_vjp
    def compute(captured: list[Any], arrays: list[Any]) -> list[Any]:
        return pure(captured, arrays)

    compute.defvjp(forward, backward)
    return compute
