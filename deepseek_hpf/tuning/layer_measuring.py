"""Measures what each layer of a model costs and risks under each policy, on recorded inputs."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.scheduling.cost_model import Cost
from deepseek_hpf.tuning.candidates import policies_of
from deepseek_hpf.tuning.layer_costs import LayerCosts, Values, risk_of
from deepseek_hpf.tuning.recorded_calls import Call, OutOfTimeError, Recording, Sample
from deepseek_hpf.tuning.trial import Trial

Step = Callable[[], Any]

_CALLS = 7  # timed of each step; the fastest counts
_FOR_STEPS = 0.8  # share of the time in which steps are compiled, to be timed after that
_COMPARED = 2**16  # numbers of one tensor
_SMALL = 1024  # elements of a tensor whose cast is all overhead


def measure(
    trial: Trial, recording: Recording, configs: Mapping[str, PrecisionConfig], deadline: float
) -> LayerCosts:
    """Measures time and risk of each kind of call under each policy, the largest first.

    Args:
        trial: The model.
        recording: Its calls.
        configs: Name of a blanket policy to its configuration; float32, which counts as exact,
            first.
        deadline: Value of `time.monotonic()` at which to be done. What has not been measured then
            is absent, and so is what cannot be called on its own.

    Returns:
        The costs.

    Raises:
        OutOfTimeError: The deadline came before the casts were measured.
    """
    plans = {name: trial.apply(config).plan for name, config in configs.items()}
    found = LayerCosts(recording, plans)
    _measure_casts(found, trial.uses_xla, deadline)
    samples = {k: s for k, s in recording.samples.items() if found.has_choice(s.path)}
    kinds = sorted(samples, key=lambda kind: -samples[kind].elements)
    steps: dict[tuple[str, str], Step] = {}
    risks: dict[tuple[str, str], float] = {}
    exact: dict[str, Values] = {}
    for place, (name, config) in enumerate(configs.items()):
        trial.apply(config)
        now = time.monotonic()
        until = now + _FOR_STEPS * (deadline - now) / (len(configs) - place)
        for kind, step, values in _made(samples, kinds, trial.uses_xla, until):
            steps[name, kind] = step
            risks[name, kind] = risk_of(values, exact.setdefault(kind, values))
        # What comes after is measured only where there is something to compare it with.
        kinds = [kind for kind in kinds if (name, kind) in steps]
    steps = {(name, kind): step for (name, kind), step in steps.items() if kind in kinds}
    for call, seconds in _timed(trial, configs, steps, deadline).items():
        found.calls[call] = Cost(seconds, risks[call])
    return found


def _made(
    samples: Mapping[str, Sample], kinds: list[str], jit_compile: bool, until: float
) -> Iterator[tuple[str, Step, Values]]:
    """Kind, step and values of as many calls as there is time for."""
    longest = 0.0
    for kind in kinds:
        began = time.monotonic()
        if began + longest > until:
            return
        try:
            yield kind, *_compiled(samples[kind], jit_compile)
        except Exception:  # noqa: BLE001 - a layer that cannot be called on its own
            continue
        longest = max(longest, time.monotonic() - began)


def _compiled(sample: Sample, jit_compile: bool) -> tuple[Step, Values]:
    dtype = sample.layer.compute_dtype
    step = sample.step(dtype, jit_compile=jit_compile)
    values = step()
    if _draws_numbers(sample.layer) and sample.call[1].get("training"):
        # Another dtype draws other numbers.
        call = (sample.call[0], {**sample.call[1], "training": False})
        values = replace(sample, call=call).step(dtype, jit_compile=jit_compile)()
    return step, ([_host(v) for v in values[0]], [_host(v) for v in values[1]])


def _timed(
    trial: Trial,
    configs: Mapping[str, PrecisionConfig],
    steps: Mapping[tuple[str, str], Step],
    deadline: float,
) -> dict[tuple[str, str], float]:
    """Shortest times, in turns: the machine may be slower while the one policy is measured."""
    shortest = dict.fromkeys(steps, math.inf)
    for _ in range(_CALLS):
        for name, config in configs.items():
            trial.apply(config)  # some back ends read the layers anew at every call
            for call in (call for call in steps if call[0] == name):
                shortest[call] = min(shortest[call], _seconds(steps[call]))
        if time.monotonic() > deadline:
            break
    return shortest


def _seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _draws_numbers(layer: keras.Layer) -> bool:
    return any(each._seed_generators for each in layer._flatten_layers())


def _host(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    flat = keras.ops.reshape(value, (-1,))
    some = flat[:: max(1, flat.shape[0] // _COMPARED)]
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(some, "float32")))


def _measure_casts(found: LayerCosts, jit_compile: bool, deadline: float) -> None:
    policies = sorted({p for plan in found.plans.values() for p in policies_of(plan).values()})
    dtypes = {policy: str(keras.DTypePolicy(policy).compute_dtype) for policy in policies}
    sizes = [elements for _, _, elements in found.recording.edges]
    large = max(int(np.median(sizes)) if sizes else 0, 16 * _SMALL)
    for producer, before in dtypes.items():
        for consumer, after in dtypes.items():
            if before == after:
                continue
            if time.monotonic() > deadline:
                raise OutOfTimeError("measuring the casts takes too long")
            few, many = (_cast_seconds(before, after, n, jit_compile) for n in (_SMALL, large))
            each = max(many - few, 0.0) / (large - _SMALL)
            found.casts[producer, consumer] = (max(few - _SMALL * each, 0.0), each)


def _cast_seconds(before: str, after: str, elements: int, jit_compile: bool) -> float:
    """Seconds of the cast of a tensor and of its gradient."""
    call: Call = ((keras.ops.ones((elements,), before),), {})

    def seconds(dtype: str) -> float:
        # A layer casts what it is given to its own dtype, and the gradient back.
        layer = keras.layers.Identity(name="cast", dtype=keras.DTypePolicy(dtype))
        layer(*call[0])
        sample = Sample("", layer, call, ((elements,),), elements)
        step = sample.step(before, jit_compile=jit_compile)
        step()
        return min(_seconds(step) for _ in range(_CALLS))

    return max(seconds(after) - seconds(before), 0.0)
