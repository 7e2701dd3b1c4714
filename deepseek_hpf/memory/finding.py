"""`memory.find_batch_size`: the largest batch that fits, or the fastest, by trials elsewhere."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import keras

from deepseek_hpf import hardware
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.memory.batch_size_result import BatchSizeResult, BatchTrial
from deepseek_hpf.memory.memory_estimate import in_units
from deepseek_hpf.memory.model_source import source_of
from deepseek_hpf.memory.policy_trials import PolicyTrials
from deepseek_hpf.memory.rows import first_rows
from deepseek_hpf.memory.step_trial import TrialJob

Objective = Literal["fits", "throughput"]
CEILING = 2**14
"""Most rows where no ceiling is given."""
_AS_FAST = 0.98  # of the highest throughput: the smaller batch is taken then


def find_batch_size(
    model: keras.Model | Callable[[], keras.Model],
    sample: Any = None,
    *,
    memory: float = 0.9,
    objective: Objective = "fits",
    policies: Sequence[str] | None = None,
    ceiling: int | None = None,
    multiple_of: int = 8,
    time_budget: float = 600.0,
    progress: Callable[[str], object] = lambda text: None,
) -> BatchSizeResult:
    """Finds the batch size that a model should be trained with, together with the precision.

    For each policy an estimate says where to look; then batches are trained in a process of its
    own, which is ended as soon as it holds more than it may: what runs out of memory there is
    nothing of the caller's. The largest batch that trained is the result, or the one with the most
    rows a second (of those within 2 % the smallest). Policies other than float32 are applied as
    `apply_policy` does. Times are of one process after the other; `hpf bench` compares more
    exactly.

    The model is only read: its configuration travels, its weights stay. As always with processes
    in Python, a script needs its `if __name__ == "__main__":`.

    Args:
        model: A compiled model that Keras can serialize, without a policy applied to it; or a
            function of a module that returns a compiled model.
        sample: `(x, y)` or `(x, y, sample_weight)`, whose rows are repeated; None for random values
            of the model's shapes.
        memory: Share of the memory that is free now, above 0 and at most 1; or, above 1, bytes.
            They are for model, optimizer and step; the framework itself is not counted.
        objective: `"fits"` for the largest batch, `"throughput"` for the fastest.
        policies: Names of policies to try; None for float32, mixed_bfloat16, and mixed_float16
            where the device computes in float16.
        ceiling: Most rows; None for 16,384.
        multiple_of: What the rows should be a multiple of. Where not even that fits, powers of two
            below are tried.
        time_budget: Seconds after which no further trial begins. The first is always completed.
        progress: Is told what is being tried, in a few words.

    Returns:
        The result: all trials, the best marked.

    Raises:
        ConfigError: An argument is none, the model cannot travel or cannot be trained, or nothing
            is known of the device's memory.
        ConfigTypeError: `model` is neither.
        PrecisionError: Not even one row fits under any policy.

    Example:
        >>> from deepseek_hpf.bench.other_models import mlp
        >>> from deepseek_hpf.memory import find_batch_size
        >>> found = find_batch_size(mlp, policies=["float32"], ceiling=8)  # doctest: +SKIP
        >>> found.batch_size  # doctest: +SKIP
        8
    """
    ceiling = CEILING if ceiling is None else ceiling
    _check(memory, objective, ceiling, multiple_of, time_budget)
    configs = [_config(name) for name in (_policies() if policies is None else policies)]
    if not configs:
        raise ConfigError("Expected at least one policy. Received: policies=[]")
    source = source_of(model)
    sample = None if sample is None else first_rows(sample)
    limit = _limit(memory)
    until = time.monotonic() + time_budget
    trials: list[BatchTrial] = []
    notes: list[str] = []
    for config in configs:
        job = TrialJob(
            source=source, policy=None if config.policy == "float32" else config, sample=sample
        )
        tried = PolicyTrials(job, config.policy, limit, until, progress)
        tried.run(objective, min(multiple_of, ceiling), ceiling)
        trials += tried.trials
        notes += tried.notes
    return BatchSizeResult(
        best=_best(trials, objective, limit),
        trials=tuple(trials),
        objective=objective,
        limit=limit,
        backend=keras.backend.backend(),
        notes=tuple(dict.fromkeys(notes)),
    )


def _best(trials: Sequence[BatchTrial], objective: Objective, limit: int) -> BatchTrial:
    fitting = [(each, each.throughput or 0.0) for each in trials if each.fits]
    if not fitting:
        smallest = min(trials, key=lambda each: each.batch_size)
        needed = smallest.peak or smallest.estimate
        is_one = smallest.batch_size == 1
        rows, more = ("of one row ", "") if is_one else ("", "time to try smaller ones, ")
        raise PrecisionError(
            f"Expected a batch {rows}to fit into {in_units(limit)}. Received a model that "
            f"needs {'at least ' + in_units(needed) if needed else 'more'} with "
            f"{smallest.batch_size} rows under {smallest.policy}: {smallest.note}. Give it {more}"
            "more memory, keep less (`memory.compress_activations`), or make the model smaller."
        )
    if objective == "fits":
        return max(fitting, key=lambda pair: (pair[0].batch_size, pair[1]))[0]
    highest = max(speed for _, speed in fitting)
    as_fast = [each for each, speed in fitting if speed >= _AS_FAST * highest]
    return min(as_fast, key=lambda each: each.batch_size)


def _policies() -> list[str]:
    device = hardware.preferred_device(hardware.usable_devices(keras.backend.backend()))
    float16 = ["mixed_float16"] if device.native("float16") and device.kind != "cpu" else []
    return ["float32", "mixed_bfloat16", *float16]


def _config(name: str) -> PrecisionConfig:
    return PrecisionConfig.from_dict({"policy": name})


def _limit(memory: float) -> int:
    if memory > 1:
        return int(memory)
    device = hardware.preferred_device(hardware.usable_devices(keras.backend.backend()))
    if device.memory_free is None:
        raise ConfigError(
            f"Expected a device whose free memory is known. Received: {device.name}, whose is not. "
            "Give `memory` in bytes."
        )
    return int(memory * device.memory_free)


def _check(memory: Any, objective: Any, ceiling: Any, multiple_of: Any, time_budget: Any) -> None:
    if objective not in get_args(Objective):
        raise ConfigError(
            f"Expected `objective` to be one of {', '.join(get_args(Objective))}. "
            f"Received: objective={objective!r}"
        )
    for name, value in (("memory", memory), ("time_budget", time_budget)):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise ConfigError(f"Expected `{name}` to be a number above 0. Received: {value!r}")
    for name, value in (("ceiling", ceiling), ("multiple_of", multiple_of)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(
                f"Expected `{name}` to be a whole number above 0. Received: {value!r}"
            )
