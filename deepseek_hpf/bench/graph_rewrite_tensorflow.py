"""TensorFlow's own mixed precision: its graph optimizer rewrites what is float32.

The option is TensorFlow's, process-wide. A function takes the options that hold when it is called,
and the runtime keeps one optimized graph for each; so the option is on while the contender's step
is called, and off for all others.

References:
    https://www.tensorflow.org/api_docs/python/tf/config/optimizer/set_experimental_options
"""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.eager import context

ON_CPU = "auto_mixed_precision_onednn_bfloat16"
ON_GPU = "auto_mixed_precision"


def rewriting(step: Callable[[], None]) -> Callable[[], None]:
    """Returns a step whose graphs TensorFlow rewrites.

    Args:
        step: Calls functions that are not compiled by XLA, which has no such rewrite.

    Returns:
        The same step under the option.
    """
    options = _options(option())
    holder = context.context()

    def rewritten() -> None:
        # Setting the option itself at each call would serialize all options twice a step.
        before = holder.function_call_options
        holder.function_call_options = options
        try:
            step()
        finally:
            holder.function_call_options = before

    return rewritten


def option() -> str:
    """Returns the name of the rewrite for the devices at hand."""
    return ON_GPU if tf.config.list_physical_devices("GPU") else ON_CPU


def _options(name: str) -> context.FunctionCallOptions:
    """The options of a call with the rewrite on; what is set in the process stays as it is."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        return context.context().function_call_options
    finally:
        tf.config.optimizer.set_experimental_options({name: before.get(name, False)})
