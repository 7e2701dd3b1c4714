"""The census of a training step, taken from what the back end itself would run."""

import importlib
from collections.abc import Callable
from typing import Any

import keras

from deepseek_hpf.adapters.adjoining_step import standing_in
from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.profiler.census_operations import TracedOperation, census_of
from deepseek_hpf.profiler.findings import Census

Batch = Any


def take_census(model: keras.Model, batch: Batch, *, measure: bool = True) -> Census:
    """Counts the operations of one training step by dtype: FLOPs, bytes, casts, time.

    It reads the step itself and no layer attribute: TensorFlow's graph of `train_step` before
    Grappler, JAX's jaxpr (through `jit`, `scan`, `cond` and custom derivatives), PyTorch's dispatch
    of an eager step. Times are of one step after a warm-up: TensorFlow's profiler's; under JAX its
    profiler's of XLA's kernels; under PyTorch those of each operation. The model, its optimizer,
    metrics, random states and compiled functions are as before when it returns or raises; what the
    step needs and is not built yet is stood in for.

    Args:
        model: A Keras model, built and compiled.
        batch: `(x, y)` or `(x, y, sample_weight)`, as in training.
        measure: Whether to run the step for its times. PyTorch's step is run in any case.

    Returns:
        The census.

    Raises:
        ConfigError: The model is not built or compiled, or cannot train on this batch.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, use_bias=False)])
        >>> model.compile("sgd", "mse")
        >>> census = take_census(model, (np.ones((2, 8)), np.ones((2, 4))), measure=False)
        >>> census.cast_count, list(census.arithmetic_shares())
        (0, ['float32'])
    """
    _check(model, batch)
    name = keras.backend.backend()
    backend = importlib.import_module(f"deepseek_hpf.profiler.census_{name}")
    trace: Callable[..., tuple[list[TracedOperation], list[str]]] = backend.trace_step
    with standing_in(model):
        try:
            operations, notes = trace(model, _tensors(batch), measure)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(_refusal(model, error)) from error
    return census_of(operations, backend.ORIGIN, notes)


def _check(model: keras.Model, batch: Batch) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigError(f"expected a keras.Model. Received: {shown(model)}.")
    if not model.built:
        raise ConfigError(
            f"model {model.name!r} is not built. Call it on a batch first, or give it an Input."
        )
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ConfigError(
            f"model {model.name!r} is not compiled, so it has no training step. Call "
            "`model.compile(optimizer=…, loss=…)` first."
        )
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise ConfigError(
            "expected a batch (x, y) or (x, y, sample_weight), as in training. "
            f"Received: {type(batch).__name__}."
        )


def _tensors(batch: Batch) -> tuple[Any, ...]:
    return tuple(keras.tree.map_structure(_tensor, part) for part in batch)


def _tensor(value: Any) -> Any:
    if value is None:
        return None
    tensor = keras.ops.convert_to_tensor(value)
    # As `fit` does with NumPy's float64 and Python's floats.
    if keras.backend.standardize_dtype(tensor.dtype) == "float64":
        tensor = keras.ops.cast(tensor, keras.config.floatx())
    return tensor


def _refusal(model: keras.Model, error: Exception) -> str:
    text = " ".join(str(error).split())
    words = f"{text[:400]}…" if len(text) > 400 else text
    return (
        f"model {model.name!r} cannot make a training step of this batch: "
        f"{type(error).__name__}: {words} Give a batch that `model.train_on_batch` takes."
    )
