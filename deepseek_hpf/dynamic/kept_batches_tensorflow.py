"""Gives drawn batches to TensorFlow's training function without tracing it more often."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_ITERATORS = (tf.data.Iterator, tf.distribute.DistributedIterator)


class Fed:
    """Keras's training function, given batches that were drawn from its iterator.

    Keras compiles the drawing along with the step, and so knows which dimensions of a batch vary.
    A drawn batch has a size; a function that is compiled for it would be traced again for a short
    last one. The step is therefore compiled for what the iterator says of its elements.

    Args:
        function: The training function.
    """

    def __init__(self, function: Callable[[Any], Any]):
        self._function = function
        self._compiled: list[tuple[Any, Callable[[Any], Any]]] = []

    def run(self, model: keras.Model, batches: list[Any], source: Any) -> tuple[Any, list[Any]]:
        """Trains on batches.

        Args:
            model: The model.
            batches: At least one.
            source: The iterator that they were drawn from.

        Returns:
            The logs of the last one, and the batches as `train_step` gets them.
        """
        shown = [_without_optionals(batch) for batch in batches]
        made_by_keras = getattr(self._function, "__module__", "").startswith("keras.")
        if model.run_eagerly or not made_by_keras or not isinstance(source, _ITERATORS):
            return self._function(iter(batches)), shown
        step = self._step(source.element_spec)
        for batch in batches:
            logs = step(batch)
        return logs, shown

    def _step(self, spec: Any) -> Callable[[Any], Any]:
        for known, step in self._compiled:
            if known == spec:
                return step
        compiled = tf.function(
            lambda batch: self._function(iter((batch,))), input_signature=[spec], autograph=False
        )
        self._compiled.append((spec, compiled))
        return compiled


def _without_optionals(batch: Any) -> Any:
    """Keras stands an absent value for None, which its own step puts back."""
    return tf.nest.map_structure(
        lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, batch
    )
