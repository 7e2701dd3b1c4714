"""All contenders on one model, in this process: made ready, warmed up, timed in turns."""

import datetime
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.bench import building
from deepseek_hpf.bench.contenders import Ready, keras_contender, make_ready, taking_part
from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.machine import this_machine
from deepseek_hpf.bench.records import (
    FLOAT32,
    BenchSettings,
    ContenderResult,
    Machine,
    ModelResult,
    Stage,
)
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.meter import Meter, meter
from deepseek_hpf.timing import time_in_turns

SLOW = 2.0  # times float32's step: such a contender is timed apart, in few rounds
ROUNDS_OF_SLOW = 3
MOST_SECONDS_OF_SLOW = 30.0  # one whose rounds would take longer is timed by its first steps
BY_FIRST_STEPS = "timed by its first steps"
_TIMING_SECONDS = 0.05  # at least so long is one timing: shorter ones are noise
_MOST_CALLS = 20


@dataclass
class _Warm:
    """A contender that has trained its first steps."""

    ready: Ready
    seconds: float  # a step
    result: ContenderResult
    hopeless: bool = False  # it is not timed in turns


def measure(job: Job, tell: Callable[[Stage], None] = lambda stage: None) -> ModelResult:
    """Measures the contenders on a model.

    One that fails is a record with the reason, and the others go on.

    Args:
        job: The model, and how.
        tell: Is told what is being done.

    Returns:
        What was measured.

    Raises:
        ConfigError: The factory returns no compiled model, the batch cannot be made, or none of
            the contenders can train on it.
    """
    tell(Stage(text="building", done=0.0))
    memory = meter()
    first = building.build_under("float32", job.make_model)
    batch = job.make_batch(first)
    names = taking_part(job.settings)
    warm: dict[str, _Warm] = {}
    results = []
    for index, name in enumerate(names):
        done = index / (len(names) + 1)
        say = _teller(tell, done)
        if name == FLOAT32:
            made = _warmed(name, job, batch, first, memory, say, math.inf)
        else:
            base = warm[FLOAT32].seconds if FLOAT32 in warm else math.inf
            made = _warmed(name, job, batch, None, meter(), say, base)
        results.append(made.result if isinstance(made, _Warm) else made)
        if isinstance(made, _Warm):
            warm[name] = made
    if not warm:
        raise ConfigError(f"No contender could train. {results[0].name}: {results[0].failure}")
    tell(Stage(text="timing in turns", done=len(names) / (len(names) + 1)))
    return ModelResult(
        model=job.model,
        target=job.target,
        settings=job.settings,
        machine=machine_at_hand(),
        when=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=job.command,
        parameters=first.count_params(),
        input_shape=_shapes(batch[0]),
        contenders=tuple(results),
        turns=_timed(warm, job.settings),
    )


def _teller(tell: Callable[[Stage], None], done: float) -> Callable[[str], None]:
    return lambda text: tell(Stage(text=text, done=done))


def _warmed(
    name: str,
    job: Job,
    batch: Any,
    model: keras.Model | None,
    memory: Meter,
    say: Callable[[str], None],
    base: float,
) -> _Warm | ContenderResult:
    """A contender after its first steps, or the record of its failure; `base` is float32's step."""
    say(f"{name}: building")
    try:
        if model is None:
            ready = make_ready(
                name, job.make_model, batch, job.settings, lambda text: say(f"{name}: {text}")
            )
        else:
            ready = keras_contender(model, batch)
        say(f"{name}: first steps")
        first, seconds = _seconds(ready.step), _seconds(ready.step)
        hopeless = is_hopeless(seconds, base)
        if not hopeless:
            seconds = min(seconds, _seconds(ready.step))
        notes = (ready.note, BY_FIRST_STEPS if hopeless else "")
        result = ContenderResult(
            name=name,
            note=", ".join(filter(None, notes)),
            first_step_seconds=first,
            peak_memory=None if hopeless else memory.peak(ready.model, batch, ready.step),
            tuning_seconds=ready.tuning_seconds,
        )
        return _Warm(ready, seconds, result, hopeless)
    except Exception as error:  # noqa: BLE001 - a row of the table says so
        return ContenderResult(name=name, failure=one_line(error))


def _timed(
    warm: Mapping[str, _Warm], settings: BenchSettings
) -> tuple[dict[str, tuple[float, ...]], ...]:
    """Groups of times: all that keep up with float32; then each slow one beside float32."""
    limit = SLOW * warm[FLOAT32].seconds if FLOAT32 in warm else math.inf
    hopeless = [name for name in warm if warm[name].hopeless]
    quick = [name for name in warm if warm[name].seconds <= limit and name not in hopeless]
    slow = [name for name in warm if name not in quick and name not in hopeless]
    groups = [quick, *([FLOAT32, name] for name in slow)]
    timed = []
    for group in groups:
        few = group is not quick
        timings = time_in_turns(
            {name: warm[name].ready.step for name in group},
            rounds=min(settings.rounds, ROUNDS_OF_SLOW) if few else settings.rounds,
            calls=calls(min(warm[name].seconds for name in group)),
            deadline=time.monotonic() + settings.seconds,
        )
        timed.append({name: tuple(values) for name, values in timings.seconds.items()})
    for name in hopeless:
        beside = _seconds(warm[FLOAT32].ready.step)
        timed.append({FLOAT32: (beside,), name: (warm[name].seconds,)})
    return tuple(timed)


def is_hopeless(seconds: float, base: float) -> bool:
    """Whether a contender is slow, and would take too long to be timed in turns.

    Args:
        seconds: Its step.
        base: Float32's step; infinite where that is not known.

    Returns:
        True if it is.

    Example:
        >>> is_hopeless(2.0, 0.5), is_hopeless(60.0, 0.5), is_hopeless(60.0, 50.0)
        (False, True, False)
    """
    steps = 1 + ROUNDS_OF_SLOW * calls(base)
    return seconds > SLOW * base and steps * seconds > MOST_SECONDS_OF_SLOW


def machine_at_hand() -> Machine:
    """Returns the record of this machine with the back end that Keras is set to."""
    return this_machine(keras.backend.backend())


def calls(seconds: float) -> int:
    """Returns how many calls one timing takes, for a step of so many seconds.

    Args:
        seconds: A step.

    Returns:
        At least 1.

    Example:
        >>> calls(1.0), calls(0.01), calls(1e-6)
        (1, 5, 20)
    """
    return min(max(math.ceil(_TIMING_SECONDS / max(seconds, 1e-9)), 1), _MOST_CALLS)


def one_line(error: BaseException) -> str:
    """Returns type and message of an exception, on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}…"
    return f"{type(error).__name__}{f': {text}' if text else ''}"


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _shapes(x: Any) -> str:
    return ", ".join(" × ".join(map(str, each.shape)) for each in keras.tree.flatten(x))  # noqa: RUF001
