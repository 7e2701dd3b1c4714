"""Layers of Keras under JAX, whose backward passes keep less."""

import functools
from typing import Any

import jax
import keras
from keras.src.backend import in_symbolic_scope
from keras.src.backend.common import global_state  # the running call has no public access

from deepseek_hpf.storage.derivative_jax import derivative
from deepseek_hpf.storage.kept_values_jax import kept_values
from deepseek_hpf.storage.ordering_jax import after, before
from deepseek_hpf.storage.pure_call_jax import PureCall, pure_call
from deepseek_hpf.storage.stored_call import Call, Settings


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
        The wrapper. Layers that it calls may have wrappers of their own, which count for them.
    """

    @functools.wraps(call)
    def saving_call(*args: Any, **kwargs: Any) -> Any:
        if _is_inference(kwargs) or in_symbolic_scope():
            return call(*args, **kwargs)
        pure = pure_call(layer, call, args, kwargs)
        if pure is None:
            return call(*args, **kwargs)
        return pure.finish(_packing(pure, settings)(pure.captured, pure.arrays))

    return saving_call


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
        outputs, packed = before(outputs, kept.pack, values)
        return outputs, packed

    def backward(packed: list[Any], gradients: list[Any]) -> tuple[list[Any], list[Any]]:
        known = [g for g in gradients if g.dtype != jax.dtypes.float0]
        values = after(known, lambda packed: remake(*kept.restore(packed)), packed)
        moved = found.backward(values, gradients)
        return moved[: len(pure.captured)], moved[len(pure.captured) :]

    @jax.custom_vjp
    def compute(captured: list[Any], arrays: list[Any]) -> list[Any]:
        return pure(captured, arrays)

    compute.defvjp(forward, backward)
    return compute
