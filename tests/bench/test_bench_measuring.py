"""Contenders on small models, on each back end: measured, and failures told."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.synthetic_batch import synthetic_batch
from deepseek_hpf.bench import contenders, measuring
from deepseek_hpf.bench.building import build_under
from deepseek_hpf.bench.image_models import unet
from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.measuring import SLOW, measure
from deepseek_hpf.bench.other_models import gpt, lstm, mlp
from deepseek_hpf.bench.records import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    OURS,
    REWRITE,
    BenchSettings,
)
from deepseek_hpf.bench.summary import seconds, speedup
from deepseek_hpf.config import PrecisionConfig, PrecisionRule
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.tuning.candidates import Candidate
from deepseek_hpf.tuning.result import TuningResult

QUICK = BenchSettings(batch_size=2, rounds=2, seconds=1.0, time_budget=2.0)


def small_mlp():
    return mlp(width=8, depth=1, features=4)


def two_rows(model):
    return synthetic_batch(model, rows=2)


def job(make_model=small_mlp, *names: str, **changes) -> Job:
    settings = dataclasses.replace(QUICK, contenders=names or QUICK.contenders, **changes)
    return Job(
        model="small", target="a:b", make_model=make_model, make_batch=two_rows, settings=settings
    )


@pytest.fixture(autouse=True)
def surroundings(global_dtype_policy):
    """Puts the global policy back."""


def test_keras_contenders_are_timed_in_turns():
    stages = []
    found = measure(job(small_mlp, FLOAT32, BFLOAT16, REWRITE), stages.append)
    names = [each.name for each in found.contenders]
    rewrites = keras.backend.backend() == "tensorflow"
    assert names == [FLOAT32, BFLOAT16] + ([REWRITE] if rewrites else [])
    assert not any(each.failure for each in found.contenders)
    assert set().union(*found.turns) == set(names)
    assert all(second > 0 for turn in found.turns for times in turn.values() for second in times)
    assert found.parameters == 4 * 8 + 8 + 8 * 10 + 10
    assert found.input_shape == "2 × 4"  # noqa: RUF001
    assert found.machine.backend == keras.backend.backend()
    assert "keras" in found.machine.versions
    done = [stage.done for stage in stages]
    assert done == sorted(done)
    told = [each.peak_memory is not None for each in found.contenders]
    assert all(told) if keras.backend.backend() == "jax" else not any(told)


def test_a_contender_that_fails_is_a_row_with_the_reason():
    def make_model():
        if keras.config.dtype_policy().name == "mixed_float16":
            raise ArithmeticError("not in\nfloat16")
        return small_mlp()

    found = measure(job(make_model, FLOAT32, FLOAT16))
    assert found.contenders[1].failure == "ArithmeticError: not in float16"
    assert [list(turn) for turn in found.turns] == [[FLOAT32]]


def test_ours_is_tuned_and_trains_with_what_was_found(monkeypatch):
    said, made = [], []

    def tune(model, batch, *, time_budget, cache, progress):
        made.append(model)
        assert (time_budget, cache) == (QUICK.time_budget, False)
        progress("halfway")
        rule = PrecisionRule(layers="dense", policy="float32")
        config = PrecisionConfig(policy="mixed_bfloat16", rules=(rule,), kernels=False)
        best = Candidate("made up", config)
        return TuningResult("mlp", "tensorflow", "cpu", (best,), best, None, 0.1, 7.0)

    monkeypatch.setattr(contenders, "tune", tune)
    model = small_mlp()
    ready = contenders.make_ready(OURS, small_mlp, two_rows(model), QUICK, said.append)
    assert (said, ready.note, ready.tuning_seconds) == (["halfway"], "made up, tuned in 7 s", 7.0)
    ready.step()
    assert ready.model is not made[0]
    assert ready.model.layers[1].dtype_policy.name == "float32"
    assert isinstance(ready.model.optimizer, LossScaleOptimizer)


def test_a_batch_that_does_not_fit_is_an_error():
    wrong = dataclasses.replace(
        job(small_mlp, FLOAT32), make_batch=lambda model: (np.ones((2, 5)), np.ones(2, "int32"))
    )
    with pytest.raises(ConfigError, match=r"No contender could train\. Keras float32: "):
        measure(wrong)


def test_a_slow_contender_is_timed_beside_float32_in_few_rounds():
    calls = {FLOAT32: 0, BFLOAT16: 0, FLOAT16: 0}

    def warm(name, seconds):
        def step():
            calls[name] += 1

        ready = contenders.Ready(model=None, step=step)
        return measuring._Warm(ready, seconds, None)

    settings = BenchSettings(rounds=7)
    turns = measuring._timed(
        {
            FLOAT32: warm(FLOAT32, 1.0),
            BFLOAT16: warm(BFLOAT16, SLOW),
            FLOAT16: warm(FLOAT16, SLOW + 0.1),
        },
        settings,
    )
    assert [sorted(turn) for turn in turns] == [
        sorted([FLOAT32, BFLOAT16]),
        sorted([FLOAT32, FLOAT16]),
    ]
    assert [len(turn[FLOAT32]) for turn in turns] == [7, measuring.ROUNDS_OF_SLOW]
    assert calls == {FLOAT32: 7 + 3 + 2, BFLOAT16: 8, FLOAT16: 4}


def test_one_that_takes_too_long_is_timed_by_its_first_steps(monkeypatch):
    monkeypatch.setattr(measuring, "MOST_SECONDS_OF_SLOW", 1.0)
    steps = []

    def make_ready(name, *arguments):
        made = contenders.make_ready(name, *arguments)
        if name != FLOAT16:
            return made
        return dataclasses.replace(made, step=lambda: steps.append(time.sleep(0.5)), note="slow")

    monkeypatch.setattr(measuring, "make_ready", make_ready)
    found = measure(job(small_mlp, FLOAT32, FLOAT16))
    assert len(steps) == 2
    assert found.contenders[1].note == f"slow, {measuring.BY_FIRST_STEPS}"
    quick, apart = found.turns
    assert set(quick) == {FLOAT32}
    assert set(apart) == {FLOAT32, FLOAT16}
    assert [len(times) for times in apart.values()] == [1, 1]
    assert speedup(found, FLOAT16, FLOAT32).median == apart[FLOAT32][0] / apart[FLOAT16][0]
    assert seconds(found, FLOAT16).median == apart[FLOAT16][0] >= 0.5


def test_contenders_start_alike_and_differ_in_policy():
    names = ("float32", "mixed_bfloat16", "mixed_float16")
    models = [build_under(name, small_mlp) for name in names]
    for name, model in zip(names, models, strict=True):
        assert model.layers[1].dtype_policy.name == name
        assert [layer.path for layer in model.layers] == [layer.path for layer in models[0].layers]
        for value, first in zip(model.get_weights(), models[0].get_weights(), strict=True):
            np.testing.assert_array_equal(value, first)
    assert isinstance(models[2].optimizer, keras.optimizers.LossScaleOptimizer)


@pytest.mark.parametrize("kind", ["none", "not compiled", "sets the policy", "raises"])
def test_what_a_factory_does_wrong_is_said_and_the_policy_put_back(kind):
    def make_model():
        if kind == "sets the policy":
            keras.config.set_dtype_policy("float64")
        if kind == "raises":
            raise ConfigError("no")
        if kind == "not compiled":
            return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        return None if kind == "none" else small_mlp()

    before = keras.config.dtype_policy().name
    with pytest.raises(ConfigError, match=r"Received|no"):
        build_under("mixed_bfloat16", make_model)
    assert keras.config.dtype_policy().name == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "make_model",
    [
        lambda: unet(side=8, width=2, depth=1),
        lambda: lstm(units=3, steps=4, features=2),
        lambda: gpt(blocks=1, width=8, heads=2, length=4, vocabulary=5),
    ],
    ids=["unet", "lstm", "gpt"],
)
def test_the_models_of_the_suite_train(make_model):
    model = make_model()
    x, y = synthetic_batch(model, rows=2)
    first = model.train_on_batch(x, y)
    for _ in range(3):
        last = model.train_on_batch(x, y)
    assert np.isfinite(last)
    assert last < first


@pytest.mark.slow_with("jax")
def test_a_gpt_does_not_see_what_comes():
    model = gpt(blocks=1, width=8, heads=2, length=6, vocabulary=5)
    tokens = np.array([[0, 1, 2, 3, 4, 0]])
    changed = tokens.copy()
    changed[0, 3:] = [1, 1, 1]
    before, after = (keras.ops.convert_to_numpy(model(each)) for each in (tokens, changed))
    np.testing.assert_allclose(before[0, :3], after[0, :3], atol=1e-6)
    assert np.abs(before[0, 3:] - after[0, 3:]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_the_graph_rewrite_reaches_its_own_contender_only():
    script = Path(__file__).parent / "rewritten_graphs.py"
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    first, second, third = told["casts"]
    assert (first, third) == (0, 0)
    assert second > 0
    assert told["before"] == told["after"]
