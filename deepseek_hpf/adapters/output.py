"""Which layers and operations produce what a model returns."""

from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class Producer:
    """What produces one output of a model.

    Args:
        operation: The layer, or the operation that is no layer (`keras.ops.softmax` on a symbolic
            tensor).
        position: Place among the model's flattened outputs.
        around: Wrappers and models that hand its result on, outermost first.
    """

    operation: Any
    position: int
    around: tuple[keras.Layer, ...] = ()

    @property
    def is_layer(self) -> bool:
        """Whether it has a dtype policy."""
        return isinstance(self.operation, keras.Layer)


def output_producers(model: keras.Model) -> list[Producer] | None:
    """Finds what produces each output, through nested models and wrappers.

    Args:
        model: The model, built or not.

    Returns:
        One for each output, in order; None where it cannot be known (a subclassed model).
    """
    if is_graph(model):
        tensors = keras.tree.flatten(model.outputs)
        return [_producer(tensor, position) for position, tensor in enumerate(tensors)]
    if isinstance(model, keras.Sequential) and model.layers:
        return [_last_of(model)]
    return None


def is_graph(model: Any) -> bool:
    """Whether a model knows its layers as a graph: functional, or sequential and built.

    Args:
        model: A layer or model.

    Returns:
        True if `model.outputs` and `graph_operations(model)` can be read.
    """
    if isinstance(model, keras.Sequential):
        return model._functional is not None
    return isinstance(model, keras.Model) and hasattr(model, "_operations")


def graph_operations(model: keras.Model) -> list[Any]:
    """Everything in the graph of a model that `is_graph`: layers and other operations.

    Args:
        model: The model.

    Returns:
        The operations, in the order in which they run.
    """
    graph = model._functional if isinstance(model, keras.Sequential) else model
    return list(graph.operations)


def _producer(tensor: Any, position: int) -> Producer:
    around: list[keras.Layer] = []
    while True:
        operation, _, index = tensor._keras_history
        if not is_graph(operation):
            break
        around.append(operation)
        tensor = keras.tree.flatten(operation.outputs)[index]
    return _through_wrappers(operation, position, around)


def _last_of(model: keras.Sequential) -> Producer:
    around: list[keras.Layer] = []
    last: Any = model
    while isinstance(last, keras.Sequential) and not is_graph(last) and last.layers:
        last = last.layers[-1]
        around.append(last)
    if is_graph(last) and len(keras.tree.flatten(last.outputs)) == 1:
        inner = _producer(keras.tree.flatten(last.outputs)[0], 0)
        return Producer(inner.operation, 0, (*around, *inner.around))
    return _through_wrappers(last, 0, around[:-1])


def _through_wrappers(operation: Any, position: int, around: list[keras.Layer]) -> Producer:
    while isinstance(operation, keras.layers.Wrapper):
        around = [*around, operation]
        operation = operation.layer
    return Producer(operation, position, tuple(around))
