"""What the optimizer's tests share: variables, gradients, and one step by every road."""

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()


def variables(*values, dtype="float32"):
    """Trainable Keras variables."""
    return [keras.Variable(np.asarray(v, "float32"), dtype=dtype, name="w") for v in values]


def tensors(*values, dtype="float32"):
    """Gradients; None stays None."""
    return [
        None if v is None else ops.cast(ops.convert_to_tensor(np.asarray(v, "float32")), dtype)
        for v in values
    ]


def compiled_apply(optimizer, weights):
    """Returns a function of the gradients that runs a compiled step, as `fit` would."""
    optimizer.build(weights)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda gradients: optimizer.apply(gradients, weights))
    if BACKEND == "torch":
        return lambda gradients: optimizer.apply(gradients, weights)
    import jax

    step = jax.jit(optimizer.stateless_apply)

    def run(gradients):
        own = optimizer.variables
        updated = step([v.value for v in own], gradients, [v.value for v in weights])
        for variable, value in zip([*weights, *own], [*updated[0], *updated[1]], strict=True):
            variable.assign(value)

    return run


def numbers(weights):
    """Values as float64 arrays."""
    return [ops.convert_to_numpy(ops.cast(v, "float32")).astype("float64") for v in weights]


def bits(weights):
    """Every byte, for comparisons that allow no rounding."""
    return [ops.convert_to_numpy(ops.cast(v, "float32")).tobytes() for v in weights]


def number(variable):
    return float(ops.convert_to_numpy(variable))
