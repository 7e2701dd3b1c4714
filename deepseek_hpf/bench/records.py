"""What a benchmark is told and what it reports: plain values, picklable, JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

FLOAT32 = "Keras float32"
BFLOAT16 = "Keras mixed_bfloat16"
FLOAT16 = "Keras mixed_float16"
REWRITE = "TensorFlow graph rewrite"
OURS = "deepseek_hpf"
CONTENDERS = (FLOAT32, BFLOAT16, FLOAT16, REWRITE, OURS)
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How a model is measured.

    Args:
        batch_size: Rows of a step.
        rounds: Timings of each contender, at most; one that is slow has fewer.
        seconds: No further round begins after so many seconds of timing.
        time_budget: Seconds that the tuner has.
        contenders: Which take part. Those that the back end does not have are left out.
    """

    batch_size: int = 16
    rounds: int = 20
    seconds: float = 30.0
    time_budget: float = 120.0
    contenders: tuple[str, ...] = CONTENDERS


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a benchmark ran.

    Args:
        backend: Keras's name of the back end.
        devices: What it computed on, e.g. `("Intel Xeon, 2 cores",)`.
        formats: What the low-precision formats are on the last of them, with the reason.
        system: Operating system and Python.
        versions: Package to version.
    """

    backend: str
    devices: tuple[str, ...]
    formats: Mapping[str, str]
    system: str
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ContenderResult:
    """One contender on one model; its times are in `ModelResult.turns`.

    Args:
        name: One of `CONTENDERS`.
        failure: Why it was not timed; empty if it was.
        note: What has to be said beside its figures, e.g. what the tuner chose.
        first_step_seconds: The first step, which traces and compiles.
        peak_memory: Bytes of a step at their most; None where the platform does not tell.
        tuning_seconds: What `tune` took; None where nothing was tuned.
    """

    name: str
    failure: str = ""
    note: str = ""
    first_step_seconds: float | None = None
    peak_memory: int | None = None
    tuning_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """All contenders on one model.

    Args:
        model: What it is called.
        target: The factory, `MODULE:FUNCTION`.
        settings: How it was measured.
        machine: Where.
        when: Date, `YYYY-MM-DD`.
        command: What ran it.
        parameters: How many the model has; None if it could not be built.
        input_shape: E.g. `"16 × 96 × 96 × 3"`.
        contenders: One record each.
        turns: Groups of contenders that were timed in turns: name to seconds a step, round by
            round. Ratios are taken within a group. A slow contender has a group of its own with
            float32; one of a single round where it was timed by its first steps.
        failure: Why there is nothing else; empty if there is.
        format: Version of this form.
    """

    model: str
    target: str
    settings: BenchSettings
    machine: Machine
    when: str
    command: str = ""
    parameters: int | None = None
    input_shape: str = ""
    contenders: tuple[ContenderResult, ...] = ()
    turns: tuple[Mapping[str, tuple[float, ...]], ...] = field(default=())
    failure: str = ""
    format: int = FORMAT

    @property
    def key(self) -> tuple[object, ...]:
        """What a second measurement of the same on the same machine has in common with this."""
        versions = tuple(sorted(self.machine.versions.items()))
        return (self.target, self.settings, self.machine.backend, self.machine.devices, versions)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is being done: shown while it lasts.

    Args:
        text: E.g. `"timing Keras float32"`.
        done: How far the model is, in [0, 1].
    """

    text: str
    done: float
