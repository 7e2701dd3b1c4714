"""Variables of the optimizer and the metrics, read in the middle of `fit`."""

from typing import Any

import keras


def current_value(model: keras.Model, variable: Any) -> Any:
    """Reads a variable as it is now; waits for the device.

    Under JAX `fit` holds the values between two steps, and the variables are empty.

    Args:
        model: A compiled model, maybe in the middle of `fit`.
        variable: One of `model.optimizer.variables` or `model.metrics_variables`.

    Returns:
        What NumPy takes for an array.
    """
    if keras.backend.backend() == "jax":
        from deepseek_hpf.adapters import guard_jax

        return guard_jax.current_value(model, variable)
    return keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))
