"""`tune`: measures how a model trains fastest, and changes nothing about it."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras

from deepseek_hpf import hardware
from deepseek_hpf.adapters import tuned
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.tuning.candidates import FLOAT32, blanket
from deepseek_hpf.tuning.progress import Progress, progress_for
from deepseek_hpf.tuning.result import TuningResult
from deepseek_hpf.tuning.search import Search
from deepseek_hpf.tuning.sequence import run_sequence
from deepseek_hpf.tuning.training_step import on_device
from deepseek_hpf.tuning.trial import trial


def tune(
    model: keras.Model,
    batch: Any,
    *,
    time_budget: float = 60.0,
    error_budget: float = 0.1,
    cache: bool = True,
    progress: bool | Callable[[str], None] | None = None,
) -> TuningResult:
    """Measures whole training steps of a model under one precision after the other.

    First the policies that Keras has, float32, mixed_bfloat16 and mixed_float16, with and without
    fused kernels; then plans that give single layers another precision, where a cost model of the
    layers' measured times, casts and errors promises a gain; then the best of them with XLA where
    the model does without, or without where it has it. Those that are near the fastest are timed in
    turns. The fastest is the result if it gains at least 1 % on the best of Keras's own, and a
    mixed plan only if it gains as much on what needs none; otherwise those are. Nothing is tried
    that the hardware cannot be fast at, and nothing for which the time does not suffice.

    The model is afterwards what it was: weights, optimizer, metrics, compiled functions and random
    states, also after an exception. Ctrl-C ends the search with the best so far.

    Args:
        model: A built and compiled model.
        batch: `(x, y)` or `(x, y, sample_weight)` of arrays or structures of them; or a dataset, of
            which the first batch is taken.
        time_budget: Seconds. The first candidate is always completed.
        error_budget: Largest relative error of the loss on the batch, against float32. The
            gradients' error is shown beside it; it only has to be finite.
        cache: Whether to look for, and to keep, the result of an earlier call for the same
            structure, batch shape, hardware and versions.
        progress: Whether to show a bar with the best ratio so far; None shows it on a terminal. Or
            a function that takes a line of text.

    Returns:
        What was found; `apply_policy(model, result.config)` trains with it.

    Raises:
        ConfigError: The model is not built or not compiled, a policy is applied to it, or the batch
            does not fit.
        ConfigTypeError: It is no Keras model.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf import tune
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> batch = np.ones((4, 8), "float32"), np.ones((4, 4), "float32")
        >>> result = tune(model, batch, time_budget=5, cache=False)
        >>> [each.name for each in result.candidates][0]
        'float32'
    """
    began = time.monotonic()
    _check(model, time_budget, error_budget)
    batch = on_device(_one_batch(batch))
    shapes = _shapes(batch)
    if cache and (found := _found(model, shapes, error_budget)) is not None:
        return found
    with progress_for(progress, time_budget) as bar, trial(model, batch) as made:
        search = Search(made, error_budget, began + time_budget, bar.say)
        notes = _run(search, bar)
        winner = search.winner(FLOAT32)
        plan = search.prepared[winner.name].plan
    result = TuningResult(
        model=model.name,
        backend=keras.backend.backend(),
        device=_device(),
        candidates=tuple(search.candidates.values()),
        best=winner,
        plan=plan,
        error_budget=error_budget,
        seconds=time.monotonic() - began,
        notes=(*search.notes, *notes),
    )
    if cache and not notes:
        tuned.keep(model, shapes, {**result.to_dict(), "config": result.config.to_dict()})
    return result


def _run(search: Search, bar: Progress) -> list[str]:
    """Runs the search; returns what has to be said of how it ended."""
    try:
        search.take_reference(blanket(FLOAT32, kernels=False))
    except Exception as error:
        # Before any other precision: the model and the batch do not fit.
        raise ConfigError(
            "Expected a batch that the model can train on. Received one on which its step fails: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    try:
        run_sequence(search)
    except KeyboardInterrupt:
        bar.say("interrupted", search.best_ratio())
        return ["interrupted: the best of what had been tried"]
    return []


def _check(model: Any, time_budget: float, error_budget: float) -> None:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(
            f"Expected `model` to be a keras.Model. Received: model={shown(model)} "
            f"(of type {type(model)})."
        )
    for name, value in (("time_budget", time_budget), ("error_budget", error_budget)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise ConfigError(f"Expected `{name}` to be a number above 0. Received: {value!r}")
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            f"Expected a compiled model. Received {model.name!r}, which is not: "
            "call `model.compile(…)` first."
        )


def _one_batch(batch: Any) -> Any:
    """The batch itself, or the first one of a dataset."""
    if isinstance(batch, tuple | list) or batch is None:
        return batch
    if isinstance(batch, keras.utils.PyDataset):
        return batch[0]
    try:
        return next(iter(batch))
    except (TypeError, StopIteration) as error:
        raise ConfigError(
            "Expected `batch` to be (x, y), (x, y, sample_weight), or a dataset of such batches "
            f"that is not empty. Received: {type(batch).__name__}"
        ) from error


def _shapes(batch: Any) -> list[str]:
    """Shapes and dtypes of the arrays of a batch."""
    tensors = [each for each in keras.tree.flatten(batch) if each is not None]
    return [
        f"{tuple(each.shape)} {keras.backend.standardize_dtype(each.dtype)}" for each in tensors
    ]


def _found(model: keras.Model, shapes: list[str], error_budget: float) -> TuningResult | None:
    if not model.built:
        return None
    found = tuned.find(model, shapes)
    if found is None or found.get("error_budget") != error_budget:
        return None
    try:
        result = TuningResult.from_dict(found)
    except ConfigError:  # of another version, or damaged: measured again
        return None
    config = PrecisionConfig.from_dict(found["config"])
    return replace(result.from_cache(), best=replace(result.best, config=config))


def _device() -> str:
    devices = hardware.usable_devices(keras.backend.backend())
    accelerators = [device.name for device in devices if device.kind != "cpu"]
    return accelerators[0] if accelerators else devices[0].name if devices else "unknown"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("Exception encountered")]
    return next(iter(told), "")[:300]
