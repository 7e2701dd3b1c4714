"""One training step of a compiled model as a function to be timed."""

import importlib
from collections.abc import Callable
from typing import Any

import keras

from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError

Batch = tuple[Any, Any, Any]
"""Inputs, targets and sample weights; what is not there is None."""


def training_step(model: keras.Model, batch: Any) -> Callable[[], None]:
    """Returns a function that trains a model once on a batch that is on the device already.

    It goes through the model's own compiled step, so whatever has been done to that, by a guard or
    by XLA, is in the time. It returns when the device is done.

    Args:
        model: A compiled model.
        batch: `(x, y)` or `(x, y, sample_weight)`; each an array or a structure of arrays.

    Returns:
        A function without arguments.

    Raises:
        ConfigError: The model is not compiled, or the batch is not one.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.tuning.training_step import training_step
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> step = training_step(model, (np.ones((2, 4)), np.ones((2, 1))))
        >>> step()
        >>> int(model.optimizer.iterations)
        1
    """
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            "Expected a compiled model, with an optimizer and a loss. Received: "
            f"{shown(model.name)}, which is not. Call `model.compile(…)` first."
        )
    x, y, weights = on_device(batch)
    drain = _drain()

    def step() -> None:
        model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        drain()

    return step


def on_device(batch: Any) -> Batch:
    """Turns the arrays of a batch into tensors of the back end.

    Args:
        batch: As in training.

    Returns:
        `(x, y, sample_weight)`.

    Raises:
        ConfigError: It is no such tuple, or it holds what is no array.
    """
    x, y, weights = unpacked(batch)
    try:
        return (_tensors(x), _tensors(y), _tensors(weights))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"Expected a batch of arrays of numbers. Received one of {type(x).__name__} that "
            f"cannot be made tensors: {str(error).splitlines()[0][:200]}"
        ) from error


def unpacked(batch: Any) -> Batch:
    """Takes the parts of a batch.

    Args:
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        All three.

    Raises:
        ConfigError: It is no such tuple.

    Example:
        >>> from deepseek_hpf.tuning.training_step import unpacked
        >>> unpacked(([1.0], [2.0]))
        ([1.0], [2.0], None)
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3) or batch[0] is None:
        raise ConfigError(
            "Expected `batch` to be (x, y) or (x, y, sample_weight), as in training. "
            f"Received: {type(batch).__name__}"
            f"{f' of {len(batch)}' if isinstance(batch, tuple | list) else ''}."
        )
    x, y, weights = (*batch, None)[:3]
    return x, y, weights


def _tensors(values: Any) -> Any:
    return keras.tree.map_structure(
        lambda value: None if value is None else keras.ops.convert_to_tensor(value), values
    )


def _drain() -> Callable[[], None]:
    """What waits for the device; on TensorFlow and JAX reading the step's logs has done so."""
    if keras.backend.backend() != "torch":
        return lambda: None
    module = importlib.import_module("deepseek_hpf.tuning.training_step_torch")
    drain: Callable[[], None] = module.drain
    return drain
