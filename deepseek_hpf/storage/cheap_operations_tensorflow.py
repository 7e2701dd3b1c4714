"""Tensors that are computed again rather than kept."""

from collections.abc import Callable, Iterable

import tensorflow as tf

from deepseek_hpf.storage.backward_graph_tensorflow import imported
from deepseek_hpf.storage.packed_tensors_tensorflow import shape_of
from deepseek_hpf.storage.tensor_origin_tensorflow import (
    bytes_of,
    is_of_parameters,
    source_of,
    values_of,
)

# TensorFlow computes these in the same way wherever they are: it merges products and sums with
# constants, which moves a last bit.
_EXACT = {
    *("Abs", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum", "Neg", "Relu"),
    *("Select", "SelectV2", "Square", "Sub", "Transpose"),
}
# None of them divides, compares or grows exponentially: where what they are computed from is a step
# off, so are they, up to a factor.
_CHEAP = {
    *_EXACT,
    *("Add", "AddV2", "BiasAdd", "BroadcastTo", "Cast", "Elu", "Erf", "Erfc", "LeakyRelu"),
    *("Mul", "Relu6", "Selu", "Sigmoid", "Softplus", "SquaredDifference", "Tanh"),
}
_FEW = 8  # times fewer values than the most: means, deviations

Sources = dict[int, tf.Tensor]  # by their identities


class CheapOperations:
    """The operations between some tensors and what they are computed from.

    Args:
        inputs: Of the computation; nothing before them is computed again.
        smallest: Bytes of the smallest tensor that is worth it.
        most: Values of the largest tensor that the computation keeps.
        is_exact: Whether what is computed again has to be the same to the bit.
    """

    def __init__(
        self, inputs: Iterable[tf.Tensor], smallest: int, most: int, is_exact: bool
    ) -> None:
        self._cheap = _EXACT if is_exact else _CHEAP
        self._inputs = {id(x) for x in inputs}
        self._smallest = smallest
        self._most = most

    def is_left(self, tensor: tf.Tensor) -> bool:
        """Whether a tensor is kept as it is: a small one, or one of parameters.

        Means and deviations are among the small ones: of few values, which count for many.
        """
        source, is_input = source_of(tensor, self._inputs)
        few = not is_input and _FEW * values_of(source) <= self._most
        return few or bytes_of(source) < self._smallest or is_of_parameters(source)

    def sources(self, tensor: tf.Tensor) -> Sources:
        """What a tensor can be computed from.

        Args:
            tensor: One of the computation.

        Returns:
            Tensors that are not left, by their identities.
        """
        source, is_input = source_of(tensor, self._inputs)
        if self.is_left(tensor):
            return {}
        if is_input or source.op.type not in self._cheap:
            return {id(source): source}
        found: Sources = {}
        for each in source.op.inputs:
            found.update(self.sources(each))
        return found

    def fewest(self, tensors: Iterable[tf.Tensor]) -> Sources:
        """What to keep, so that all of some tensors can be computed.

        Args:
            tensors: Some that are not left.

        Returns:
            For those that have the same sources, these or the tensors themselves, whichever takes
            fewer bits once packed.
        """
        groups: dict[frozenset[int], tuple[Sources, Sources]] = {}
        for tensor in tensors:
            sources = self.sources(tensor)
            themselves = groups.setdefault(frozenset(sources), (sources, {}))[1]
            itself = source_of(tensor)[0]
            themselves[id(itself)] = itself
        chosen: Sources = {}
        for key in sorted(groups, key=len):
            if not key <= set(chosen):
                sources, themselves = groups[key]
                chosen.update(sources if _bits(sources) < _bits(themselves) else themselves)
        return chosen

    def again(
        self,
        tensors: Iterable[tf.Tensor],
        values: Callable[[tf.Tensor], tf.Tensor | None],
        after: tf.Tensor,
    ) -> list[tf.Tensor]:
        """Computes tensors in the graph at hand.

        Args:
            tensors: Some of the computation.
            values: Gives the value of a source, None where it has none.
            after: What is to be there before anything is computed from what is left.

        Returns:
            The tensors.
        """
        made: dict[int, tf.Tensor] = {}

        def compute(tensor: tf.Tensor) -> tf.Tensor:
            if id(tensor) not in made:
                made[id(tensor)] = anew(tensor)
            return made[id(tensor)]

        def anew(tensor: tf.Tensor) -> tf.Tensor:
            if self.is_left(tensor):
                with tf.control_dependencies([after]):
                    return tf.identity(tensor)
            source = source_of(tensor)[0]
            value = values(source)
            if source is not tensor:
                return _viewed(compute(source) if value is None else value, tensor)
            if value is not None:
                return value
            given = {each.name: compute(each) for each in tensor.op.inputs}
            return imported([tensor.op], given, [tensor.name])[0]

        return [compute(tensor) for tensor in tensors]


def _viewed(value: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The same values in the shape and the dtype of a tensor that is not kept for it."""
    with like.graph.as_default(), tf.control_dependencies(None):
        shape = shape_of(like)
    return tf.cast(tf.reshape(value, shape), like.dtype)


def _bits(tensors: Sources) -> int:
    return sum(values_of(x) * (1 if x.dtype == tf.bool else 8) for x in tensors.values())
