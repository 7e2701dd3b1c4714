"""Layers of Keras under JAX that tell what their backward passes would keep."""

import functools
from typing import Any

import keras

from deepseek_hpf.storage.derivative_jax import derivative, is_literal
from deepseek_hpf.storage.kept_count import STORAGES, KeptCount
from deepseek_hpf.storage.kept_values_jax import kept_values
from deepseek_hpf.storage.packed_values_jax import Form, Whole
from deepseek_hpf.storage.saved_calls_jax import pure_training_call
from deepseek_hpf.storage.stored_call import Call, Settings


def counted(layer: keras.Layer, call: Call, path: str, count: KeptCount) -> Call:
    """The call of a layer, what its backward pass needs being counted when a step is traced.

    Args:
        layer: The layer.
        call: Its present `call`.
        path: Its path.
        count: Where to note it.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def counting_call(*args: Any, **kwargs: Any) -> Any:
        pure = pure_training_call(layer, call, args, kwargs)
        if pure is None:
            return call(*args, **kwargs)
        found = derivative(pure)
        # What is a variable's is kept in any case: the forms of what packs say which values are.
        packing = {
            storage: kept_values(
                found, pure.variables, Settings(storage, count.seed, count.smallest)
            )
            for storage in STORAGES
            if storage is not None
        }
        free = {v for kept in packing.values() for v, form in kept.forms.items() if _is_free(form)}
        whole = [v for v in found.kept if not is_literal(v) and v not in free]
        forms: dict[str | None, dict[Any, Form]] = {s: kept.forms for s, kept in packing.items()}
        forms[None] = {var: Whole() for var in whole}
        variables = list(dict.fromkeys(v for each in forms.values() for v in each))
        outputs, values = found.forward(variables)([*pure.captured, *pure.arrays])
        value_of = dict(zip(variables, values, strict=True))
        for storage, each in forms.items():
            for var, form in each.items():
                if not _is_free(form):
                    value, size = value_of[var], form.kept_bytes(var.aval)
                    count.note(path, storage, value, size, key=(id(value), _kind(form)))
        return pure.finish(outputs)

    return counting_call


def _is_free(form: Form) -> bool:
    return isinstance(form, Whole) and form.free


def _kind(form: Form) -> Any:
    return Whole if isinstance(form, Whole) else form
