"""What the tensors of a TensorFlow graph are computed from."""

import math
from collections.abc import Collection
from typing import Any

import tensorflow as tf

# What takes and gives the same values, in the same order.
_VIEWS = {
    *("EnsureShape", "ExpandDims", "Identity", "IdentityN", "PreventGradient", "Reshape"),
    *("Squeeze", "StopGradient"),
}
_WIDER = {tf.float16: {tf.float32, tf.float64}, tf.bfloat16: {tf.float32, tf.float64}}
_WIDER[tf.float32] = {tf.float64}
_UNKNOWN = 16  # taken for a size that is not known when the step is traced, that of the batch say
_TOLD = "_deepseek_hpf_of_parameters"


def source_of(tensor: tf.Tensor, stops: Collection[int] = ()) -> tuple[tf.Tensor, bool]:
    """The first tensor that holds the same values in the same order.

    Args:
        tensor: A tensor of a graph.
        stops: Identities of tensors to be seen on the way.

    Returns:
        The tensor, of which this one is a view or an exact cast, and whether one of `stops` is on
        the way to it, itself included.
    """
    passed = id(tensor) in stops
    while _is_view(tensor.op):
        tensor = tensor.op.inputs[_place(tensor)]
        passed = passed or id(tensor) in stops
    return tensor, passed


def buffer_of(tensor: tf.Tensor) -> tf.Tensor:
    """The first tensor that has the same place in memory.

    Args:
        tensor: A tensor of a graph.

    Returns:
        The tensor, of which this one is a view.
    """
    while tensor.op.type in _VIEWS:
        tensor = tensor.op.inputs[_place(tensor)]
    return tensor


def is_of_parameters(tensor: tf.Tensor) -> bool:
    """Whether a tensor depends on nothing but variables and constants.

    Args:
        tensor: A tensor of a graph.

    Returns:
        False where it depends on data or on random numbers.
    """
    # Kept with the graph: each operation is looked at once, however many layers there are.
    told: dict[str, bool] = noted(tensor.graph, _TOLD)
    stack = [tensor.op]
    while stack:
        op = stack[-1]
        before = [t.op for t in op.inputs if t.op.name not in told and t.dtype != tf.resource]
        if op.name not in told and before and not _is_random(op):
            stack.extend(before)
            continue
        told[stack.pop().name] = _is_parameter(op, told)
    return told[tensor.op.name]


def is_held_by_the_caller(tensor: tf.Tensor) -> bool:
    """Whether a tensor is an argument of the function that is traced."""
    return tensor.op.type == "Placeholder"


def values_of(tensor: tf.Tensor) -> int:
    """The number of values, an unknown size being taken for 16."""
    if tensor.shape.rank is None:
        return _UNKNOWN
    return math.prod(_UNKNOWN if size is None else size for size in tensor.shape)


def bytes_of(tensor: tf.Tensor) -> int:
    """The bytes of a tensor, an unknown size being taken for 16."""
    return values_of(tensor) * tensor.dtype.size


def noted(graph: tf.Graph, name: str) -> dict[Any, Any]:
    """A dictionary that lives as long as a graph.

    Args:
        graph: The graph.
        name: Of an attribute that only the caller uses.

    Returns:
        Always the same one.
    """
    if not hasattr(graph, name):
        setattr(graph, name, {})
    found: dict[Any, Any] = getattr(graph, name)
    return found


def _is_view(op: tf.Operation) -> bool:
    if op.type != "Cast":
        return op.type in _VIEWS
    given, made = op.inputs[0].dtype, op.outputs[0].dtype
    return given == made or made in _WIDER.get(given, ())


def _place(view: tf.Tensor) -> int:
    return view.value_index if view.op.type == "IdentityN" else 0


def _is_random(op: tf.Operation) -> bool:
    return "Random" in op.type or "Multinomial" in op.type


def _is_parameter(op: tf.Operation, told: dict[str, bool]) -> bool:
    if _is_random(op):
        return False
    if op.type in ("Const", "ReadVariableOp", "VarHandleOp"):
        return True
    if not op.inputs or any(
        t.dtype == tf.resource and op.type != "ResourceGather" for t in op.inputs
    ):
        return op.type == "Placeholder" and op.outputs[0].dtype == tf.resource
    return all(told[t.op.name] for t in op.inputs if t.dtype != tf.resource)
