"""Layers of Keras under JAX whose storage is chosen when a compiled step runs, to try them all.

A step compiled for each storage of each layer would take minutes each. These layers round what
they keep as the storage in question would, save no bytes, and need one step for all.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import keras

from deepseek_hpf.storage.derivative_jax import Derivative, derivative, is_literal
from deepseek_hpf.storage.kept_values_jax import kept_values
from deepseek_hpf.storage.packed_values_jax import Form
from deepseek_hpf.storage.pure_call_jax import PureCall
from deepseek_hpf.storage.saved_calls_jax import pure_training_call
from deepseek_hpf.storage.stored_call import Call, Settings


@dataclass
class Chosen:
    """Which storage of which layer a step tries.

    Args:
        number: The number that `tried` has been given for it, as the step is traced; any other
            number is none.
    """

    number: Any = -1


def tried(layer: keras.Layer, call: Call, numbers: Mapping[int, Settings], chosen: Chosen) -> Call:
    """The call of a layer that keeps things in the storage that is chosen.

    Args:
        layer: The layer.
        call: Its present `call`.
        numbers: By number, storages that pack.
        chosen: What is chosen.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def trying_call(*args: Any, **kwargs: Any) -> Any:
        pure = pure_training_call(layer, call, args, kwargs)
        if pure is None:
            return call(*args, **kwargs)
        return pure.finish(_trying(pure, numbers, chosen)(pure.captured, pure.arrays))

    return trying_call


def _trying(pure: PureCall, numbers: Mapping[int, Settings], chosen: Chosen) -> Any:
    found = derivative(pure)
    variables, forms = _forms(found, pure, numbers)
    compute_all = found.forward(variables)
    place = sum((jnp.int32(n + 1) * (chosen.number == number) for n, number in enumerate(numbers)))

    def forward(captured: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        outputs, values = compute_all([*captured, *arrays])
        return outputs, jax.lax.switch(place, forms, *values)

    def backward(kept: list[Any], gradients: list[Any]) -> tuple[list[Any], list[Any]]:
        moved = found.backward(kept, gradients)
        return moved[: len(pure.captured)], moved[len(pure.captured) :]

    @jax.custom_vjp
    def compute(captured: list[Any], arrays: list[Any]) -> list[Any]:
        return pure(captured, arrays)

    compute.defvjp(forward, backward)
    return compute


def _forms(
    found: Derivative, pure: PureCall, numbers: Mapping[int, Settings]
) -> tuple[list[Any], list[Callable[..., list[Any]]]]:
    """Variables, and functions from their values to what is kept: as it is, and by number."""
    packing = [kept_values(found, pure.variables, settings) for settings in numbers.values()]
    whole = [v for v in found.kept if not is_literal(v)]
    variables = list(dict.fromkeys([*whole, *(v for kept in packing for v in kept.variables)]))

    def remaking(wanted: Sequence[Any], approximately: Mapping[Any, Form]) -> Any:
        part = found.part(wanted, found.kept)

        def remake(*values: Any) -> list[Any]:
            value_of = dict(zip(variables, values, strict=True))
            given = [_approximated(value_of[v], approximately.get(v), v.aval) for v in wanted]
            return [jnp.asarray(x) for x in part(*given)]

        return remake

    as_it_is = remaking(list(dict.fromkeys(whole)), {})
    return variables, [as_it_is, *(remaking(kept.variables, kept.forms) for kept in packing)]


def _approximated(value: Any, form: Form | None, aval: Any) -> Any:
    return value if form is None else form.restore(form.pack(value), aval)
