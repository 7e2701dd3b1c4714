"""Training steps of one model in this process, with growing batches: their time and their peak."""

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from deepseek_hpf import hardware
from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.memory.meter import Meter, meter
from deepseek_hpf.memory.model_source import ModelSource
from deepseek_hpf.memory.process_memory import forget_peak, peak_memory, resident_memory
from deepseek_hpf.memory.rows import rows_of, sample_of
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.tuning.training_step import training_step

_STEPS = 5  # timed, unless they are slow; the median counts
_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """A model to try. Has to be picklable.

    Args:
        source: Makes the model.
        policy: What it is trained under; None as it is made.
        sample: Rows for the batch; None for random ones.
    """

    source: ModelSource
    policy: PrecisionConfig | None = None
    sample: Any = None


@dataclass(frozen=True)
class StepTrial:
    """What training steps took.

    Args:
        rows: Of the batch.
        seconds: A step.
        peak: Most bytes in a step, model and optimizer included, the framework itself not; None
            where the system does not tell.
        first_peak: The same with the first step, in which it was traced and compiled.
        between: What of the peak is there between two steps too.
    """

    rows: int
    seconds: float
    peak: int | None
    first_peak: int | None
    between: int | None


def made_ready(job: TrialJob) -> keras.Model:
    """Makes the model of a job, under its policy.

    Args:
        job: The job.

    Returns:
        The model, compiled, with the policy applied.

    Raises:
        ConfigError: It cannot be made.
    """
    if job.policy is None:
        return job.source.make()
    policy = MixedPrecisionPolicy(config=job.policy)
    with policy.scope():
        model = job.source.make()
    apply_policy(model, policy)
    return model


class StepTrials:
    """Trains a model with one batch size after the other.

    Attributes:
        before: Bytes that the process had before it made a model.
        on_cpu: Whether the model trains in the process's own memory.
        model: The model, once `make` has made it.
    """

    def __init__(self) -> None:
        _warm_up()
        forget_peak()
        self.before = peak_memory() or 0
        self.on_cpu = hardware.preferred_device(_usable()).kind == "cpu"
        self._meter: Meter = meter()

    def make(self, job: TrialJob) -> None:
        """Makes the model.

        Args:
            job: The model.

        Raises:
            ConfigError: It cannot be made, or there is no batch for it.
        """
        self.model = made_ready(job)
        self._sample = sample_of(self.model, job.sample)

    def step(self, rows: int) -> StepTrial:
        """Trains some steps.

        Args:
            rows: Of the batch.

        Returns:
            What they took.
        """
        batch = rows_of(self._sample, rows)
        forget_peak()
        step = training_step(self.model, batch)
        del batch
        step()
        first = self._beyond(peak_memory())
        forget_peak()
        between = self._beyond(resident_memory(os.getpid()))
        seconds = [_seconds(step)]
        while len(seconds) < _STEPS and sum(seconds) < _SECONDS:
            seconds.append(_seconds(step))
        peak = self._beyond(peak_memory())
        if not self.on_cpu:
            peak = first = self._meter.peak(self.model, rows_of(self._sample, rows), step)
            between = None
        return StepTrial(rows, statistics.median(seconds), peak, first, between)

    def _beyond(self, has: int | None) -> int | None:
        """Bytes beyond what the process had without the model."""
        return None if has is None else max(has - self.before, 0)


def _warm_up() -> None:
    """Has the framework load what it loads with its first step, which is not the model's."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((8, 8), "float32"), np.ones((8, 8), "float32"))


def _usable() -> list[Any]:
    return hardware.usable_devices(keras.backend.backend())


def _seconds(step: Any) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
