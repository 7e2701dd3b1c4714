"""What a run of the demonstration is told and what it reports: plain values, picklable."""

import math
import statistics
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One training.

    Args:
        policy: `"auto"` or the name of a Keras policy, applied with the rules and the guards; None
            for plain Keras in float32, the run to compare with.
        config_path: A JSON configuration for the policy, or None.
        dataset: `"digits"`, or the name of a TFDS image classification set.
        epochs: How many.
        batch_size: Images a step.
        seed: Of the weights and of the data order.
        image_size: Side in pixels to which digits are enlarged.
        limit: At most so many training images (digits only); None for all.
        cache_dir: Folder of the datasets; None for the default.
    """

    policy: str | None = None
    config_path: str | None = None
    dataset: str = "digits"
    epochs: int = 10
    batch_size: int = 32
    seed: int = 0
    image_size: int = 16
    limit: int | None = None
    cache_dir: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What is known when the model stands and nothing is trained yet."""

    policy_name: str
    reason: str
    backend: str
    versions: dict[str, str]
    steps_per_epoch: int
    image_shape: tuple[int, int, int]
    classes: int
    parameters: int
    initial_weights: str  # SHA-256


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """A training step; `loss` is the epoch's mean so far."""

    epoch: int
    step: int
    loss: float


@dataclass(frozen=True, kw_only=True)
class EpochDone:
    """An epoch, its test included: mean losses, accuracy in [0, 1], seconds of each step."""

    epoch: int
    loss: float
    test_loss: float
    test_accuracy: float
    step_seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Args:
        start: What was known at its start.
        epochs: One record an epoch.
        peak_memory: Most memory that the process had resident at once, in bytes; None where the
            system does not say.
        dynamic_scale: The loss scale at the end; None where the loss was not scaled.
        skipped_steps: Steps whose gradient was not finite; None where nobody counted.
    """

    start: RunStart
    epochs: tuple[EpochDone, ...]
    peak_memory: int | None
    dynamic_scale: float | None
    skipped_steps: int | None

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps but for the first two, which compile; NaN if there are no more."""
        steps = [seconds for epoch in self.epochs for seconds in epoch.step_seconds]
        return statistics.median(steps[2:]) if len(steps) > 2 else math.nan

    @property
    def test_accuracy(self) -> float:
        """After the last epoch, in [0, 1]."""
        return self.epochs[-1].test_accuracy


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same training twice: plain float32, and under the policy.

    Args:
        settings: Those of the run under the policy.
        baseline: The run in float32, by plain Keras.
        policy: The run under the policy.
    """

    settings: RunSettings
    baseline: RunResult
    policy: RunResult

    @property
    def speed(self) -> float:
        """How many times as many steps a second the policy makes as float32 does."""
        return self.baseline.seconds_per_step / self.policy.seconds_per_step

    @property
    def same_start(self) -> bool:
        """Whether both runs began with the same weights, bit for bit."""
        return self.baseline.start.initial_weights == self.policy.start.initial_weights


Event = RunStart | StepDone | EpochDone
