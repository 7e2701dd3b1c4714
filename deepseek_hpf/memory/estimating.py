"""`memory.estimate`: what a training step would need, without running it."""

import contextlib
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from deepseek_hpf.adapters.adjoining_step import standing_in
from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.apply import apply_policy, as_policy
from deepseek_hpf.adapters.random_generators import random_states_kept
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.memory.memory_estimate import MemoryEstimate
from deepseek_hpf.memory.rows import sample_of, shapes_of
from deepseek_hpf.memory.traced_step import TracedStep, trace
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.tuning.trial import attributes_kept


def estimate(
    model: keras.Model,
    batch_size: int,
    policy: MixedPrecisionPolicy | keras.DTypePolicy | PrecisionConfig | str | None = None,
    *,
    sample: Any = None,
) -> MemoryEstimate:
    """Says what a training step of a model would need, without running it.

    The model's variables and the optimizer's are counted. The peak of what a step makes and gives
    back is, under JAX, XLA's own plan of the compiled step; under PyTorch that of the step run on
    fake tensors; under TensorFlow that of the traced graph. The last two do not see what a kernel
    needs inside. The framework itself, some hundred megabytes, is not counted. Activations that
    `compress_activations` packs are counted as the traced step has them; under PyTorch, where what
    is packed depends on its values, such a model is refused.

    The model is afterwards what it was, bit by bit. An optimizer that is not built is stood in for
    meanwhile by one that is, which takes the memory of its slots.

    Args:
        model: A built and compiled model. Under JAX not in the middle of an epoch of `fit`.
        batch_size: Rows. At least 1.
        policy: What it is to train under, as for `apply_policy`; None for the model as it is. A
            built model's variables keep their dtype.
        sample: `(x, y)` or `(x, y, sample_weight)` with at least one row, of which shapes and
            dtypes count; None where the model says what it takes.

    Returns:
        The estimate, term by term. Prints as a table.

    Raises:
        ConfigError: The model is not built or not compiled, has a policy already where another is
            asked for, does not say what it takes, or cannot make a step of the sample.
        ConfigTypeError: It is not a Keras model.

    Example:
        >>> import keras
        >>> from deepseek_hpf.memory import estimate
        >>> model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(256)])
        >>> model.compile("adam", "mse")
        >>> found = estimate(model, 64)
        >>> found.parameters == found.gradients == 4 * (256 * 256 + 256)
        True
        >>> found.total < estimate(model, 640).total
        True

    References:
        - [JAX, Compiled.memory_analysis](https://docs.jax.dev/en/latest/jax.stages.html)
    """
    _check(model, batch_size, policy)
    shapes = shapes_of(sample_of(model, sample), batch_size)
    with _under(model, policy) as name:
        traced = _traced(model, shapes)
        return MemoryEstimate(
            model=model.name,
            backend=keras.backend.backend(),
            policy=name,
            batch_size=batch_size,
            parameters=_bytes(model.variables),
            slots=_bytes([*model.optimizer.variables, *model.metrics_variables]),
            batch=_bytes(each for each in keras.tree.flatten(shapes) if each is not None),
            gradients=_bytes(model.trainable_variables),
            kept=traced.kept,
            temporary=traced.temporary,
            origin=traced.origin,
            notes=traced.notes,
        )


@contextlib.contextmanager
def _under(model: keras.Model, policy: Any) -> Iterator[str]:
    """The model as it would train; afterwards as it was."""
    with random_states_kept(), _marks_kept(model), attributes_kept(model), standing_in(model):
        if policy is None:
            yield model.dtype_policy.name
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is only looked at
                apply_policy(model, policy)
            yield as_policy(policy).name
        finally:
            Applied.to(model).revert()


@contextlib.contextmanager
def _marks_kept(model: keras.Model) -> Iterator[None]:
    """A call leaves a mark on the layer."""
    before = [(layer, layer._called) for layer in model._flatten_layers()]
    try:
        yield
    finally:
        for layer, mark in before:
            layer._called = mark


def _traced(model: keras.Model, shapes: Any) -> TracedStep:
    try:
        return trace(model, shapes)
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"Expected a model that can make a training step of this batch. Received: "
            f"{model.name!r}, for which it fails: {type(error).__name__}: {text} "
            "Give a `sample` that `model.train_on_batch` takes."
        ) from error


def _check(model: Any, batch_size: Any, policy: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(
            f"Expected `model` to be a keras.Model. Received: model={model!r} "
            f"(of type {type(model)})"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigError(
            f"Expected `batch_size` to be a number of rows, 1 or more. Received: {batch_size!r}"
        )
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            f"Expected a compiled model. Received: {model.name!r}, which is not: call "
            "`model.compile(…)` first."
        )
    if not model.built or not all(layer.built for layer in model._flatten_layers()):
        raise ConfigError(
            f"Expected a built model. Received: {model.name!r}, which is not: call it on a batch, "
            "or give it a keras.Input."
        )
    if policy is not None and Applied.is_applied(model):
        raise ConfigError(
            "Expected a model as Keras made it. Received one that a policy is applied to: leave "
            "`policy` out, or take it back with `.revert()` on the report of `apply_policy`."
        )


def _bytes(values: Iterable[Any]) -> int:
    return sum(math.prod(value.shape) * _item_bytes(value.dtype) for value in values)


def _item_bytes(dtype: Any) -> int:
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return max(int(bits[0]) // 8, 1) if bits else 1  # of bool there is one byte each
