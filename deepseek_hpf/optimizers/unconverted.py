"""Methods that a user's `tf.function` calls directly, which AutoGraph is to leave as they are."""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar, cast

import keras

Method = TypeVar("Method", bound=Callable[..., Any])


def unconverted(method: Method) -> Method:
    """Marks a method; without TensorFlow there is nothing to mark.

    `fit` converts nothing, and AutoGraph knows Keras's own optimizers. Ours it would rewrite
    line by line, to the same effect, with a warning for each line that it cannot.

    Args:
        method: Of a class whose back end is TensorFlow, or another.

    Returns:
        The method.

    References:
        https://www.tensorflow.org/api_docs/python/tf/autograph/experimental/do_not_convert
    """
    if keras.backend.backend() != "tensorflow":
        return method
    native = importlib.import_module("deepseek_hpf.optimizers.unconverted_tensorflow")
    return cast(Method, native.unconverted(method))
