"""Which wrappers a draft asks for, on which layers, operations and on the model itself."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.adapters import call_hooks
from deepseek_hpf.adapters.critical import Critical
from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.adapters.output import graph_operations, is_graph, output_producers
from deepseek_hpf.adapters.planning import Decision

SOFTMAX_OPERATIONS = frozenset({"Softmax", "LogSoftmax"})
MATRIX_OPERATIONS = frozenset({"Matmul", "Einsum", "Dot", "Tensordot", "Inner", "Outer", "Conv"})


@dataclass(frozen=True)
class CallHook:
    """A wrapper to be put around the `call` of one object.

    Args:
        target: A layer, the model, or an operation of a functional model.
        kind: What tells this wrapper from another one on the same target.
        wrap: Makes the wrapper from the present `call`.
        line: A line for the report; empty for layers, which have rows.
    """

    target: Any
    kind: tuple[Any, ...]
    wrap: Callable[[call_hooks.Call], call_hooks.Call]
    line: str = ""

    def around(self, inner: "CallHook | None") -> "CallHook":
        """Joins two wrappers of one target.

        Args:
            inner: The one next to the target's own `call`; None for none.

        Returns:
            Both as one.
        """
        if inner is None:
            return self
        kind = (*self.kind, *inner.kind)
        return CallHook(self.target, kind, lambda call: self.wrap(inner.wrap(call)), self.line)


def wanted_hooks(model: keras.Model, decisions: list[Decision]) -> list[CallHook]:
    """Lists the wrappers that bring critical computations and outputs to float32.

    Args:
        model: The model.
        decisions: What has been decided on its layers, of which at least one computes low.

    Returns:
        At most one for each target.
    """
    hooks = [_of_layer(d.layer, d.critical) for d in decisions if d.critical is not None]
    graphs = [model, *(d.layer for d in decisions)]
    hooks += _of_operations(model, [g for g in graphs if is_graph(g)])
    hooks += _of_model(model, decisions)
    return [hook for hook in hooks if hook is not None]


def _of_layer(layer: keras.Layer, critical: Critical) -> CallHook | None:
    kind = (critical.treatment, id(critical.owner))
    match critical.treatment:
        case "result":
            return CallHook(layer, kind, call_hooks.with_result_cast)
        case "activation":
            return CallHook(
                layer, kind, lambda call: call_hooks.with_float32_activation(call, layer)
            )
        case "back":
            owner = critical.owner
            return CallHook(layer, kind, lambda call: call_hooks.with_result_as(call, owner))
    return None


def _of_operations(model: keras.Model, graphs: Iterable[keras.Model]) -> list[CallHook]:
    """Operations that are no layers have no policy: they compute in what they are given."""
    outputs = {id(p.operation) for p in output_producers(model) or [] if not p.is_layer}
    hooks = {}
    for graph in graphs:
        for operation in graph_operations(graph):
            if not isinstance(operation, keras.Layer):
                hooks[id(operation)] = _of_operation(operation, id(operation) in outputs)
    return [hook for hook in hooks.values() if hook is not None]


def _of_operation(operation: Any, is_output: bool) -> CallHook | None:
    name = f"{operation.name} ({type(operation).__name__})"
    if is_output and type(operation).__name__ in MATRIX_OPERATIONS:
        line = f"{name}, the model's output: its result is cast to float32"
        return CallHook(operation, ("result",), call_hooks.with_result_cast, line)
    if is_output:
        line = f"{name}, the model's output: computed in float32"
        return CallHook(operation, ("arguments",), call_hooks.with_arguments_cast, line)
    if type(operation).__name__ in SOFTMAX_OPERATIONS:
        line = f"{name}: computed in float32"
        return CallHook(operation, ("inside",), call_hooks.with_float32_inside, line)
    return None


def _of_model(model: keras.Model, decisions: list[Decision]) -> list[CallHook]:
    """Casts what a model returns where no layer can be held responsible for it."""
    row_of = {id(d.layer): d.row for d in decisions}
    producers = output_producers(model)
    keep: set[int] = set()
    known = producers is not None
    for producer in producers or []:
        row = row_of.get(id(producer.operation))
        if row is not None and row.rule is not None:
            keep.add(producer.position)
        elif producer.is_layer and not _obeys_its_policy(producer.operation):
            known = False
    if known:
        return []
    line = "the model's outputs are cast to float32"
    return [
        CallHook(
            model,
            ("outputs", *sorted(keep)),
            lambda call: call_hooks.with_result_cast(call, frozenset(keep)),
            line,
        )
    ]


def _obeys_its_policy(layer: keras.Layer) -> bool:
    """Whether a layer's result surely has its compute dtype: code of users may cast as it likes."""
    in_keras = type(layer).__module__.startswith("keras.")
    return in_keras and not isinstance(layer, keras.layers.Lambda)


def any_low(dtypes: Iterable[str]) -> bool:
    """Whether any of some compute dtypes has 16 bits.

    Args:
        dtypes: Names of dtypes.

    Returns:
        True if there is anything to protect.
    """
    return any(map(is_low, dtypes))
