"""Wrappers around the `call` of one layer, model or operation: they change dtypes on the way.

They sit on the instance, are not saved, and run inside the compiled step on every back end.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.adapters.layer_dtype import is_low

Call = Callable[..., Any]


def cast_low(values: Any, dtype: str = "float32", keep: frozenset[int] = frozenset()) -> Any:
    """Casts the float16 and bfloat16 tensors of a nested structure.

    Args:
        values: Tensors and anything else, nested.
        dtype: What to cast them to.
        keep: Positions in the flattened structure to leave as they are.

    Returns:
        The same structure; tensors of other dtypes are the same objects.
    """
    position = iter(range(len(keras.tree.flatten(values))))

    def cast(value: Any) -> Any:
        here = next(position)
        if here in keep or not hasattr(value, "dtype"):
            return value
        found = keras.backend.standardize_dtype(value.dtype)
        if not is_low(found) or found == dtype:
            return value
        result = keras.ops.cast(value, dtype)
        mask = backend.get_keras_mask(value)
        if mask is not None:
            backend.set_keras_mask(result, mask)
        return result

    return keras.tree.map_structure(cast, values)


def with_result_cast(call: Call, keep: frozenset[int] = frozenset()) -> Call:
    """The result in float32, whatever the call computes in.

    Args:
        call: What is wrapped.
        keep: Positions of the flattened result to leave as they are.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return cast_low(call(*args, **kwargs), keep=keep)

    return wrapper


def with_arguments_cast(call: Call) -> Call:
    """The computation in float32: low-precision tensors among the arguments are cast first.

    Args:
        call: What is wrapped.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return call(*cast_low(args), **cast_low(kwargs))

    return wrapper


def with_float32_inside(call: Call) -> Call:
    """The computation in float32, its result in the dtype of the first tensor that came in.

    Args:
        call: What is wrapped.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        first = next(x for x in keras.tree.flatten((args, kwargs)) if hasattr(x, "dtype"))
        result = call(*cast_low(args), **cast_low(kwargs))
        return keras.tree.map_structure(lambda x: keras.ops.cast(x, first.dtype), result)

    return wrapper


def with_float32_activation(call: Call, layer: keras.Layer) -> Call:
    """A matrix product that stays low, its result cast to float32 and the activation applied there.

    Args:
        call: What is wrapped.
        layer: Its layer, with an `activation` that the `call` applies last.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        activation = layer.activation
        # The layer skips what it does not have: its own code runs up to the activation.
        layer.activation = None
        try:
            product = cast_low(call(*args, **kwargs))
        finally:
            layer.activation = activation
        return product if activation is None else activation(product)

    return wrapper


def with_result_as(call: Call, owner: keras.Layer) -> Call:
    """The result in the compute dtype of the layer that uses it.

    A float32 softmax would otherwise drag the matrix product behind it into float32.

    Args:
        call: What is wrapped.
        owner: The layer that uses the result.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return keras.tree.map_structure(
            lambda x: keras.ops.cast(x, owner.compute_dtype), call(*args, **kwargs)
        )

    return wrapper
