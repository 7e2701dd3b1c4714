"""Runs a function of tensors compiled by TensorFlow, until the device is done."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def running(
    function: Callable[..., Any], inputs: Sequence[Any], *, with_gradients: bool
) -> Callable[[], None]:
    """Makes a work that can be timed.

    Args:
        function: Takes the inputs, returns a tensor.
        inputs: Tensors.
        with_gradients: Whether the gradients by all inputs are taken too. What flows back is the
            output itself: a constant could be compiled away.

    Returns:
        A function that computes once and waits.
    """

    @tf.function(autograph=False)
    def compiled(*values: Any) -> Any:
        if not with_gradients:
            return function(*values)
        with tf.GradientTape() as tape:
            tape.watch(values)
            output = function(*values)
        return output, tape.gradient(output, values, output_gradients=output)

    def work() -> None:
        compiled(*inputs)
        tf.test.experimental.sync_devices()

    return work
