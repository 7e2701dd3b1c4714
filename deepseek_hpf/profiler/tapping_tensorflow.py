"""Taps under TensorFlow: eager values, gradients by custom gradients, operations by callbacks."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from deepseek_hpf.profiler.statistics import EXPONENTS, Partial, partial_statistics


def _count(exponents: Any) -> Any:
    # XLA knows no bincount whose length is an operand.
    return tf.math.unsorted_segment_sum(tf.ones_like(exponents), exponents, EXPONENTS + 1)


@functools.cache
def _compiled() -> Any:
    return tf.function(lambda x: partial_statistics(x, _count, keras.ops), jit_compile=True)


def reduce(values: Any) -> Partial:
    """Statistics of a chunk of values.

    Args:
        values: Float tensor of one axis.

    Returns:
        What `Summary.add` takes.
    """
    parts = _compiled()(values)
    return tuple(part.numpy() for part in parts)


def is_concrete(tensor: Any) -> bool:
    """Whether values can be read now."""
    return isinstance(tensor, tf.Tensor) and hasattr(tensor, "numpy")


def with_gradient(tensor: Any, report: Callable[[Any], None]) -> Any:
    """The tensor, and a call of `report` with its gradient when that is known."""

    @tf.custom_gradient
    def tap(x: Any) -> Any:
        def backward(gradient: Any) -> Any:
            report(gradient)
            return gradient

        return tf.identity(x), backward

    return tap(tensor)


def differentiate(
    function: Callable[[list[Any]], Any], values: list[Any]
) -> tuple[Any, Callable[[], list[Any]]]:
    """Runs a function; its gradients are computed when asked for.

    Args:
        function: From values to a scalar, or None where there is no loss.
        values: Tensors.

    Returns:
        The scalar, and a function that returns one gradient, or None, for each value.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(values)
        loss = function(values)
    return loss, lambda: [_dense(g) for g in tape.gradient(loss, values)]


def _dense(gradient: Any) -> Any:
    return tf.convert_to_tensor(gradient) if isinstance(gradient, tf.IndexedSlices) else gradient


@contextmanager
def listening(seen: Callable[[str, list[Any], list[Any]], None]) -> Iterator[None]:
    """Calls `seen(name, inputs, outputs)` for every operation that runs in this thread."""

    def callback(
        op_type: Any,
        inputs: Any,
        attrs: Any,
        outputs: Any,
        op_name: Any = None,
        graph: Any = None,
    ) -> None:
        # Eager operations come with a name in bytes.
        name = op_type.decode() if isinstance(op_type, bytes) else op_type
        seen(name, list(inputs), list(outputs))

    op_callbacks.add_op_callback(callback)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(callback)
