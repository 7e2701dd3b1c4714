"""The backward pass of a piece of a TensorFlow graph, taken apart by when it can be computed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

# What a gradient operation may do with a tensor: {name of the operation: of which inputs}.
Uses = set[tuple[str, int]]


@dataclass(frozen=True)
class Kept:
    """A tensor that the backward pass needs from the forward pass.

    Args:
        tensor: The tensor, in the graph of the forward pass.
        uses: The gradient operations that take it, by type, and as which of their inputs.
    """

    tensor: tf.Tensor
    uses: frozenset[tuple[str, int]]


class BackwardGraph:
    """The gradient operations of a computation, in two parts.

    What neither takes nor waits for the incoming gradient, TensorFlow's runtime computes as soon as
    it can, which is in the forward pass. That part becomes a part of the forward graph, where it is
    seen what it is computed from. The other part is put where the gradients are wanted, with
    whatever values for the tensors that it needs.

    Args:
        tape: Persistent, has watched the computation.
        outputs: Of the computation.
        sources: What to differentiate by: tensors and variables.

    Example:
        >>> import tensorflow as tf
        >>> from deepseek_hpf.storage.backward_graph_tensorflow import BackwardGraph
        >>> @tf.function
        ... def gradient(x):
        ...     with tf.GradientTape(persistent=True) as tape:
        ...         tape.watch(x)
        ...         y = x * x
        ...     graph = BackwardGraph(tape, [y], [x])
        ...     print([kept.tensor is x for kept in graph.kept.values()])
        ...     return graph.gradients([tf.ones_like(y)], {name: 5.0 * x for name in graph.kept})
        >>> float(gradient(tf.constant(2.0))[0])
        [True]
        20.0
    """

    def __init__(
        self, tape: tf.GradientTape, outputs: Sequence[tf.Tensor], sources: Sequence[Any]
    ) -> None:
        self._count = len(sources)
        self._trace(tape, outputs, sources)
        operations = self._concrete.graph.get_operations()
        self._captured = {p.name: outer for outer, p in self._concrete.graph.captures}
        self._library = self._concrete.graph.as_graph_def().library
        roots = {t.op for t in self._upstream}
        late = _dependent(operations, roots)
        constants = {op for op in operations if op.type == "Const"}
        self._late = [op for op in operations if op in late | constants]
        uses = _uses(late, roots | late | constants)
        early = [op for op in operations if op not in late and op.type != "Placeholder"]
        outputs_made_early = [t.name for t in self._concrete.outputs if t.op not in late]
        self._early = self._in_forward_graph(early, [*uses, *outputs_made_early])
        self.kept = {
            name: Kept(self._early[name], frozenset(found)) for name, found in uses.items()
        }
        """By a name of its own, each tensor that the second part needs."""

    @property
    def called_types(self) -> set[str]:
        """Types of the operations in functions that the gradient operations may call."""
        return {node.op for function in self._library.function for node in function.node_def}

    def gradients(
        self, upstream: Sequence[tf.Tensor], values: Mapping[str, tf.Tensor]
    ) -> list[tf.Tensor | None]:
        """Puts the second part into the graph at hand.

        Args:
            upstream: The incoming gradients.
            values: For the names of `kept`, tensors.

        Returns:
            The gradients of the sources; None for those that the outputs do not depend on.
        """
        by_name = {t.name: u for t, u in zip(self._upstream, upstream, strict=True)}
        given = {**self._early, **values, **by_name}
        wanted = [t.name for t in self._concrete.outputs]
        made = imported(self._late, given, wanted, self._library)
        found = [given.get(name, tensor) for name, tensor in zip(wanted, made, strict=True)]
        structured = tf.nest.pack_sequence_as(
            self._concrete.structured_outputs, found, expand_composites=True
        )
        result: list[tf.Tensor | None] = [None] * self._count
        for place, gradient in zip(self._places, structured, strict=True):
            result[place] = gradient
        return result

    def _trace(
        self, tape: tf.GradientTape, outputs: Sequence[tf.Tensor], sources: Sequence[Any]
    ) -> None:
        def trace(*upstream: tf.Tensor) -> list[Any]:
            found = tape.gradient(list(outputs), list(sources), list(upstream))
            self._places = [i for i, gradient in enumerate(found) if gradient is not None]
            return [found[place] for place in self._places]

        specs = [tf.TensorSpec(y.shape, y.dtype) for y in outputs]
        self._concrete = tf.function(trace, autograph=False).get_concrete_function(*specs)
        self._upstream = self._concrete.inputs[: len(outputs)]

    def _in_forward_graph(
        self, operations: list[tf.Operation], names: list[str]
    ) -> dict[str, tf.Tensor]:
        """The first part, computed from the forward pass; tensors by their names in the trace."""
        new = [name for name in dict.fromkeys(names) if name not in self._captured]
        made = imported(operations, self._captured, new, self._library)
        return {**self._captured, **dict(zip(new, made, strict=True))}


def imported(
    operations: Iterable[tf.Operation],
    values: Mapping[str, tf.Tensor],
    wanted: Sequence[str],
    library: Any = None,
) -> list[tf.Tensor]:
    """Copies operations into the graph at hand.

    Args:
        operations: Of one graph.
        values: Names of tensors in that graph, and what to take for them.
        wanted: Names of the tensors to return; those of `values` are None.
        library: Definitions of functions that the operations call.

    Returns:
        The tensors.
    """
    chosen = list(operations)
    used = {t.name for op in chosen for t in op.inputs}
    given = {name: _here(value) for name, value in values.items() if name in used}
    given.update(_control_inputs(chosen, values))
    definition = tf.compat.v1.GraphDef()
    if library is not None:
        definition.library.CopyFrom(library)
    inside = {op.name for op in chosen}
    for op in chosen:
        node = definition.node.add()
        node.CopyFrom(op.node_def)
        del node.input[:]
        node.input.extend(
            name
            for name in op.node_def.input
            if name[0] != "^" or name in given or name[1:] in inside
        )
        node.attr.pop("_class", None)
    new = [name for name in wanted if name not in values]
    made = iter(tf.graph_util.import_graph_def(definition, given, new, name="kept") or ())
    return [None if name in values else next(made) for name in wanted]


def _control_inputs(
    operations: Iterable[tf.Operation], values: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    """What to wait for, in place of operations that gave what values are given for."""
    awaited = {before.name for op in operations for before in op.control_inputs}
    found = {name.partition(":")[0]: value for name, value in values.items()}
    return {f"^{name}": _here(value) for name, value in found.items() if name in awaited}


def _dependent(operations: Iterable[tf.Operation], roots: set[tf.Operation]) -> set[tf.Operation]:
    """The operations that take, directly or not, what the roots give, or wait for it."""
    found = set(roots)
    for op in operations:
        if any(each in found for each in (*(t.op for t in op.inputs), *op.control_inputs)):
            found.add(op)
    return found - roots


def _uses(late: set[tf.Operation], others: set[tf.Operation]) -> dict[str, Uses]:
    found: dict[str, Uses] = {}
    for op in late:
        for place, tensor in enumerate(op.inputs):
            if tensor.op not in others:
                found.setdefault(tensor.name, set()).add((op.type, place))
    return found


def _here(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor in the graph at hand, which may be another than that of the forward pass."""
    graph = tf.compat.v1.get_default_graph()
    return tensor if tensor.graph is graph else tf.identity(tensor)
