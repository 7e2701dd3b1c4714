"""Whole training steps of one model under several configurations, and the model as it was after."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.adapters.adjoining_step import standing_in, values_restored
from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.expected_retraces import expected_retraces
from deepseek_hpf.adapters.random_generators import random_states_kept
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.timing import Timings, time_in_turns
from deepseek_hpf.tuning.numerical_error import StepValues, step_values
from deepseek_hpf.tuning.training_step import on_device, training_step

_KEPT = ("optimizer", "train_function", "test_function", "predict_function", "_jit_compile")
_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model's training step under one configuration, compiled and warmed up.

    Args:
        config: The configuration.
        plan: What it makes of the model's layers.
        kernels: How many layers run a fused kernel.
        first_seconds: The first step: tracing, compiling, running.
        seconds: A later step; rough, of few.
    """

    config: PrecisionConfig
    plan: PrecisionPlan
    kernels: int
    first_seconds: float
    seconds: float
    _functions: Mapping[str, Any]


class Trial:
    """Trains a model under one configuration after the other, or in turns.

    Made by `trial`, which puts everything back.

    Args:
        model: The model, built and compiled.
        batch: What it is trained on.
        rewind: Gives the model the values back that it came with.
    """

    def __init__(self, model: keras.Model, batch: Any, rewind: Callable[[], None]):
        self.model = model
        self.batch = on_device(batch)
        self._step = training_step(model, self.batch)
        self._own_jit = bool(model.jit_compile)
        self.rewind = rewind

    @property
    def uses_xla(self) -> bool:
        """Whether the model's own setting compiles its step by XLA (or `torch.compile`)."""
        return self._own_jit

    def prepare(self, config: PrecisionConfig, warm_up: int = 2) -> Prepared:
        """Brings the model under a configuration and trains its first steps.

        Args:
            config: The configuration; "auto" is decided as without a tuned plan. Where it leaves
                `jit_compile` open, the model's own setting counts.
            warm_up: Steps after the first; the fastest counts.

        Returns:
            The step, to be timed by `time`.
        """
        report = self.apply(config)
        # Past a function that is there from a configuration before.
        self.model.make_train_function(force=True)
        began = time.perf_counter()
        self._step()
        first = time.perf_counter() - began
        later = [_seconds(self._step) for _ in range(max(warm_up, 1))]
        functions = {name: vars(self.model)[name] for name in _KEPT[:2] if name in vars(self.model)}
        kernels = sum(layer.kernel is True for layer in report.plan.values())
        return Prepared(config, report.plan, kernels, first, min(later), functions)

    def time(
        self, candidates: Mapping[str, Prepared], *, rounds: int, calls: int, deadline: float
    ) -> Timings:
        """Times steps in turns.

        Args:
            candidates: Name to step.
            rounds: How often each is timed.
            calls: Steps in one timing.
            deadline: Value of `time.monotonic()` after which no further round begins.

        Returns:
            Seconds a step.
        """
        return time_in_turns(
            dict.fromkeys(candidates, self._step),
            rounds=rounds,
            calls=calls,
            warm_up=1,
            deadline=deadline,
            prepare=lambda name: self._activate(candidates[name]),
        )

    def values(self, config: PrecisionConfig) -> StepValues:
        """Loss and gradients under a configuration, from the weights that the model came with.

        Args:
            config: The configuration.

        Returns:
            The values.
        """
        self.rewind()
        self.apply(config)
        return step_values(self.model, self.batch)

    def apply(self, config: PrecisionConfig) -> OverrideReport:
        """Brings the model under a configuration, without a step.

        Args:
            config: The configuration. Where it leaves `jit_compile` open, the model's own setting
                counts.

        Returns:
            The report.
        """
        if config.jit_compile is None:
            config = config.replace(jit_compile=self._own_jit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each candidate; of the winner they are given
            return Applied.to(self.model).apply(MixedPrecisionPolicy(config=config))

    def _activate(self, prepared: Prepared) -> None:
        if self._reads_layers_anew():
            self.apply(prepared.config)
        for name, value in prepared._functions.items():
            object.__setattr__(self.model, name, value)

    def _reads_layers_anew(self) -> bool:
        """Whether a step is run by Python each time, so that the layers have to be as they were."""
        return keras.backend.backend() == "torch" or bool(self.model.run_eagerly)


@contextlib.contextmanager
def trial(model: keras.Model, batch: Any) -> Iterator[Trial]:
    """Makes a trial; afterwards the model is what it was, also after an exception or Ctrl-C.

    Weights, optimizer, metrics, random states, policies, calls and compiled functions are the same,
    bit by bit and object by object.

    Args:
        model: A built and compiled model without a policy applied to it.
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Yields:
        The trial.

    Raises:
        ConfigError: A policy is applied to the model, or it is not built or not compiled.
    """
    _refuse(model)
    with (
        expected_retraces(),
        random_states_kept(),
        attributes_kept(model),
        standing_in(model),
        values_restored(model) as rewind,
    ):
        made = Trial(model, batch, rewind)
        try:
            yield made
        finally:
            Applied.to(model).revert()


def _refuse(model: keras.Model) -> None:
    if Applied.is_applied(model):
        raise ConfigError(
            "Expected a model as Keras made it. Received one that a policy is applied to: take it "
            "back with `.revert()` on the report of `apply_policy`, or tune a new model."
        )
    if not model.built or not all(layer.built for layer in model._flatten_layers()):
        raise ConfigError(
            f"Expected a built model. Received {model.name!r}, which is not: call it on a batch, "
            "or give it a keras.Input."
        )


@contextlib.contextmanager
def attributes_kept(model: keras.Model) -> Iterator[None]:
    """Gives a model its optimizer, compiled functions and `jit_compile` back, whatever happens.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    before = {name: vars(model).get(name, _ABSENT) for name in _KEPT}
    compiled = dict(model._compile_config.config) if model.compiled else {}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not _ABSENT:
                object.__setattr__(model, name, value)
            elif name in vars(model):
                object.__delattr__(model, name)
        if model.compiled:
            model._compile_config.config.update(compiled)


def _seconds(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
