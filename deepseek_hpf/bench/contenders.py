"""The contenders: each makes a model of its own ready, and returns its training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.bench import building
from deepseek_hpf.bench.building import MakeModel
from deepseek_hpf.bench.records import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    OURS,
    REWRITE,
    BenchSettings,
)
from deepseek_hpf.lazy import import_with_backend
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.tuning.training_step import training_step
from deepseek_hpf.tuning.tune import tune

Say = Callable[[str], None]
KERAS_POLICIES = {FLOAT32: "float32", BFLOAT16: "mixed_bfloat16", FLOAT16: "mixed_float16"}


@dataclass(frozen=True)
class Ready:
    """A contender that can train.

    Args:
        model: Its model.
        step: Trains once, and waits for the end.
        note: What has to be said of it.
        tuning_seconds: What `tune` took; None where nothing was tuned.
    """

    model: keras.Model
    step: Callable[[], None]
    note: str = ""
    tuning_seconds: float | None = None


def taking_part(settings: BenchSettings) -> list[str]:
    """Returns those contenders that are asked for and that the back end has."""
    rewrites = keras.backend.backend() == "tensorflow"
    return [name for name in settings.contenders if name != REWRITE or rewrites]


def make_ready(
    name: str, make_model: MakeModel, batch: Any, settings: BenchSettings, say: Say
) -> Ready:
    """Makes a contender.

    Args:
        name: One of `records.CONTENDERS`.
        make_model: The factory.
        batch: What it trains on.
        settings: Of the benchmark.
        say: Is told what happens.

    Returns:
        The contender; nothing has been trained yet.

    Raises:
        ConfigError: The factory is none, or `tune` refuses.
    """
    if name == OURS:
        return _ours(make_model, batch, settings, say)
    if name == REWRITE:
        return _rewritten(make_model, batch)
    return keras_contender(building.build_under(KERAS_POLICIES[name], make_model), batch)


def keras_contender(model: keras.Model, batch: Any) -> Ready:
    """Returns a model as it is, with its step.

    Args:
        model: A compiled model.
        batch: What it trains on.

    Returns:
        The contender.

    Raises:
        ConfigError: The batch is none.
    """
    step = training_step(model, batch)
    if model.built and not model.optimizer.built:
        # TensorFlow traces a step twice that makes variables.
        model.optimizer.build(model.trainable_variables)
    return Ready(model, step)


def _rewritten(make_model: MakeModel, batch: Any) -> Ready:
    rewrite = import_with_backend("deepseek_hpf.bench.graph_rewrite_tensorflow")
    model = building.build_under("float32", make_model)
    note = rewrite.option()
    if model.jit_compile:
        model.jit_compile = False
        note += ", without XLA, which it does not reach"
    ready = keras_contender(model, batch)
    return Ready(model, rewrite.rewriting(ready.step), note)


def _ours(make_model: MakeModel, batch: Any, settings: BenchSettings, say: Say) -> Ready:
    """Tunes a model, and trains another with what was found, as a user does."""
    to_tune = building.build_under("float32", make_model)
    result = tune(to_tune, batch, time_budget=settings.time_budget, cache=False, progress=say)
    del to_tune
    policy = MixedPrecisionPolicy(config=result.config)
    model = building.build_under(policy.name, make_model)
    apply_policy(model, policy)
    ready = keras_contender(model, batch)
    note = f"{result.best.name}, tuned in {result.seconds:.0f} s"
    return Ready(model, ready.step, note, result.seconds)
