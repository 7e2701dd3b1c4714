"""Mixed plans: a cost model proposes them, whole steps decide. The times here are made up."""

import dataclasses
import math
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from deepseek_hpf import PrecisionConfig, tune
from deepseek_hpf.adapters.walk import rule_nodes, walk
from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.cost_model import Cost
from deepseek_hpf.scheduling.rules import resolve_rules
from deepseek_hpf.timing import Timings
from deepseek_hpf.tuning import mixed_plans, sequence
from deepseek_hpf.tuning.candidates import blanket
from deepseek_hpf.tuning.layer_costs import LayerCosts
from deepseek_hpf.tuning.mixed_plans import try_mixed_plans
from deepseek_hpf.tuning.numerical_error import StepValues
from deepseek_hpf.tuning.recorded_calls import OutOfTimeError, Recording
from deepseek_hpf.tuning.search import Search
from deepseek_hpf.tuning.trial import Trial

pytestmark = pytest.mark.slow_with("jax")

RNG = np.random.default_rng()
FULL, LOW = "float32", "mixed_bfloat16"


class Unsteady(keras.layers.Layer):
    """Loses in low precision what is small beside 30,000."""

    def call(self, x):
        return (x + 30000.0) - 30000.0


def unsteady_model():
    """In low precision its output is 0, and with it its loss another one."""
    dense = [keras.layers.Dense(6, "relu", name=name, kernel_initializer="ones") for name in "ab"]
    head = keras.layers.Dense(3, kernel_initializer="ones", name="head")
    model = keras.Sequential([keras.Input((6,)), *dense, Unsteady(name="unsteady"), head])
    model.compile("adam", "mse")
    return model


def batch():
    return RNG.random((4, 6), "float32"), RNG.random((4, 3), "float32")


def seconds_of(policies):
    """The first two layers are twice as fast in low precision, all else is the same."""
    return sum(1.0 if policies.get(path) == FULL else 0.5 for path in "ab") + 0.5


@pytest.fixture
def made_up_times(monkeypatch):
    """Only `measured_step` is left to say what a whole step takes."""
    measured = SimpleNamespace(step=seconds_of, plans={})
    prepare, measure = Trial.prepare, mixed_plans.measure

    def prepare_in_no_time(self, config, warm_up=2):
        made = prepare(self, config, warm_up)
        policies = {path: layer.policy for path, layer in made.plan.items()}
        return dataclasses.replace(made, seconds=measured.step(policies), first_seconds=0.0)

    def time_in_turns(self, candidates, **_):
        return Timings({name: [step.seconds] * 3 for name, step in candidates.items()})

    def measured_layers(trial, recording, configs, deadline):
        costs = measure(trial, recording, configs, time.monotonic() + 300)
        costs.casts.clear()
        for (policy, kind), cost in costs.calls.items():
            path = recording.samples[kind].path
            taken = 1.0 if policy == FULL and path in "ab" else 0.5
            costs.calls[policy, kind] = Cost(taken, cost.risk)
        return costs

    monkeypatch.setattr(sequence, "hopeless_policies", lambda *_: {"mixed_float16": "made up"})
    monkeypatch.setattr(sequence, "_try_other_compiler", lambda search: None)
    monkeypatch.setattr(Trial, "prepare", prepare_in_no_time)
    monkeypatch.setattr(Trial, "time", time_in_turns)
    monkeypatch.setattr(mixed_plans, "measure", measured_layers)
    return measured


def tuned(model):
    return tune(model, batch(), time_budget=600.0, cache=False)


def named(result, name):
    return next(each for each in result.candidates if each.name == name)


def host(values):
    return [np.array(keras.ops.convert_to_numpy(value)) for value in values]


def test_one_bad_layer_in_float32_makes_low_precision_possible(made_up_times):
    model = unsteady_model()
    model.fit(*batch(), verbose=0)
    before = host(v.value for v in [*model.variables, *model.optimizer.variables])
    function = model.train_function
    model.layers[0].set_weights([np.ones((6, 6)), np.zeros(6)])
    before[0], before[1] = np.ones((6, 6), "float32"), np.zeros(6, "float32")

    result = tuned(model)

    assert "budget" in named(result, LOW).note
    assert result.best.name == "mixed by layer"
    assert result.best.loss_error <= result.error_budget
    assert result.best.predicted == pytest.approx(result.best.ratio, rel=1e-3)
    policies = {path: layer.policy for path, layer in result.plan.items()}
    assert policies == {"a": LOW, "b": LOW, "unsteady": FULL, "head": FULL}
    assert [rule.to_dict() for rule in result.config.rules] == [
        {"layer_type": "Unsteady", "policy": FULL}
    ]
    assert "predicted" in str(result)

    after = host(v.value for v in [*model.variables, *model.optimizer.variables])
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)
    assert model.train_function is function
    assert [layer.dtype_policy.name for layer in model.layers] == [FULL] * 4
    assert not any("call" in vars(layer) for layer in model.layers)


@pytest.mark.slow
def test_a_plan_that_was_promised_and_is_slow_does_not_win(made_up_times):
    def step(policies):
        is_mixed = policies["a"] == LOW and policies["unsteady"] == FULL
        return seconds_of(policies) + 5.0 * is_mixed

    made_up_times.step = step
    result = tuned(unsteady_model())
    mixed = named(result, "mixed by layer")
    assert mixed.predicted > 1.2 > mixed.ratio
    assert result.best.name == FULL


@pytest.mark.parametrize("place", ["measure", "record"])
def test_ctrl_c_while_the_layers_are_measured(monkeypatch, made_up_times, place):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    if place == "measure":
        monkeypatch.setattr(mixed_plans, "measure", interrupted)
    else:
        monkeypatch.setattr("deepseek_hpf.tuning.recorded_calls._Recorder._note", interrupted)
    model = unsteady_model()
    before = host(v.value for v in model.variables)
    result = tuned(model)
    assert "interrupted" in str(result)
    assert result.best.name == FULL
    for was, now in zip(before, host(v.value for v in model.variables), strict=True):
        np.testing.assert_array_equal(was, now)
    assert [layer.dtype_policy.name for layer in model.layers] == [FULL] * 4
    assert not any("call" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize(
    ("error", "words"),
    [(OutOfTimeError("takes too long"), "too long"), (RuntimeError("made up"), "RuntimeError")],
)
def test_why_there_is_no_mixed_plan(monkeypatch, made_up_times, error, words):
    def failing(*arguments):
        raise error

    monkeypatch.setattr(mixed_plans, "measure", failing)
    result = tuned(unsteady_model())
    assert any("no mixed plan" in note and words in note for note in result.notes)
    assert result.best.name == FULL


class MadeUpTrial:
    """A trial of layers a, b, c, … whose times and errors are functions of their policies."""

    def __init__(self, kinds, step, error):
        layers = [getattr(keras.layers, kind)(name=name) for name, kind in kinds.items()]
        self.model = keras.Sequential(layers)
        self._nodes = rule_nodes(walk(self.model))
        self._step, self._error = step, error

    def policies(self, config):
        found = resolve_rules(config.rules, self._nodes)
        said = {node.path: found.setting(node.path, "policy") for node in self._nodes}
        return {path: str(config.policy) if s is None else s[0] for path, s in said.items()}

    def prepare(self, config):
        policies = self.policies(config)
        return SimpleNamespace(seconds=self._step(policies), first_seconds=0.0, kernels=0)

    def values(self, config):
        return StepValues(1.0 + self._error(self.policies(config)), (np.ones(1),))


def searched(monkeypatch, kinds, layers, *, error, step=None):
    """Tries mixed plans for `layers`: path to seconds in float32, in low precision, and risk."""

    def model_step(policies):
        return sum(layers[path][policy == LOW] for path, policy in policies.items())

    search = Search(
        MadeUpTrial(kinds, step or model_step, error), 0.1, time.monotonic() + 600, lambda *_: None
    )
    search.take_reference(blanket(FULL, kernels=False))
    search.add(blanket(LOW, kernels=False))
    recording = Recording(
        samples={path: SimpleNamespace(path=path, elements=1) for path in layers},
        kinds={path: [path] for path in layers},
    )
    plans = {p: PrecisionPlan({x: LayerPlan(policy=p) for x in layers}) for p in (FULL, LOW)}
    calls = {(FULL, path): Cost(full) for path, (full, _, _) in layers.items()}
    calls |= {(LOW, path): Cost(low, risk) for path, (_, low, risk) in layers.items()}
    monkeypatch.setattr(mixed_plans, "_costs", lambda *_: LayerCosts(recording, plans, calls))
    try_mixed_plans(search, 600.0)
    return search


def islands(search, name):
    policies = search.trial.policies(search.candidates[name].config)
    return {path for path, policy in policies.items() if policy == FULL}


KINDS = {"a": "Flatten", "b": "ReLU", "c": "ReLU"}


def test_layers_that_low_precision_slows_down_are_in_float32(monkeypatch):
    layers = {"a": (3.0, 1.0, 1e-5), "b": (1.0, 2.0, 1e-5), "c": (1.0, 0.9, 1e-5)}
    search = searched(monkeypatch, KINDS, layers, error=lambda _: 0.0)
    assert islands(search, "mixed by layer") == {"b"}
    assert "mixed by type" not in search.candidates
    by_layer = search.candidates["mixed by layer"]
    assert by_layer.predicted == pytest.approx(by_layer.ratio, rel=1e-4)
    assert search.winner(FULL).name == "mixed by layer"
    assert search.notes == []


def test_where_single_layers_mislead_their_type_is_tried(monkeypatch):
    layers = {"a": (3.0, 1.0, 1e-5), "b": (1.0, 2.0, 1e-5), "c": (1.0, 0.9, 1e-5)}

    def step(policies):
        seconds = sum(layers[path][policy == LOW] for path, policy in policies.items())
        return seconds + 9.0 * (policies["b"] != policies["c"])

    search = searched(monkeypatch, KINDS, layers, error=lambda _: 0.0, step=step)
    assert islands(search, "mixed by layer") == {"b"}
    assert islands(search, "mixed by type") == {"b", "c"}
    assert search.winner(FULL).name == "mixed by type"
    (rule,) = search.winner(FULL).config.rules
    assert rule.layer_type == "ReLU"


def test_too_small_a_promise_is_told_and_not_tried(monkeypatch):
    layers = {"a": (3.0, 1.0, 1e-5), "b": (1.0, 1.06, 1e-5), "c": (1.0, 1.0, 1e-5)}
    search = searched(monkeypatch, KINDS, layers, error=lambda _: 0.0)
    assert list(search.candidates) == [FULL, LOW]
    (note,) = search.notes
    assert "1.02 times" in note


def test_a_plan_beyond_the_error_budget_is_followed_by_a_stricter_one(monkeypatch):
    # All in low precision: 1.0; without b, whose risk is the largest: 0.5; without both: nothing.
    layers = {"a": (1.0, 0.5, 1e-9), "b": (1.0, 0.5, 1.0), "c": (1.0, 0.5, 4e-3)}
    errors = {"b": 0.5, "c": 0.5}
    search = searched(
        monkeypatch,
        KINDS | {"b": "Softmax"},
        layers,
        error=lambda policies: sum(e for path, e in errors.items() if policies[path] == LOW),
    )
    assert islands(search, "mixed by layer") == {"b"}
    assert "budget" in search.candidates["mixed by layer"].note
    assert islands(search, "mixed by layer, stricter") == {"b", "c"}
    assert search.winner(FULL).name == "mixed by layer, stricter"


def test_a_layer_that_overflows_stays_in_float32(monkeypatch):
    layers = {"a": (1.0, 0.5, 1e-5), "b": (1.0, 0.5, math.inf), "c": (1.0, 0.5, 1e-5)}
    search = searched(
        monkeypatch,
        KINDS,
        layers,
        error=lambda policies: math.inf if policies["b"] == LOW else 0.0,
    )
    assert islands(search, "mixed by layer") == {"b"}
    assert search.winner(FULL).name == "mixed by layer"


def test_a_plan_within_the_noise_of_a_simpler_one_does_not_win(monkeypatch):
    layers = {"a": (3.0, 1.0, 1e-5), "b": (1.0, 2.0, 1e-5), "c": (1.0, 0.9, 1e-5)}
    search = searched(
        monkeypatch,
        KINDS,
        layers,
        error=lambda _: 0.0,
        step=lambda policies: 3.0 if set(policies.values()) == {FULL} else 2.0,
    )
    assert search.candidates["mixed by layer"].predicted > 1.5
    assert search.winner(FULL).name == LOW


def test_without_a_low_policy_nothing_is_measured(monkeypatch):
    def forbidden(*arguments):
        raise AssertionError

    monkeypatch.setattr(mixed_plans, "_costs", forbidden)
    trial = MadeUpTrial(KINDS, lambda policies: 1.0, lambda policies: 0.0)
    search = Search(trial, 0.1, time.monotonic() + 600, lambda *_: None)
    search.take_reference(blanket(FULL, kernels=False))
    try_mixed_plans(search, 600.0)
    assert search.notes == []


def test_no_time_left_is_told():
    trial = MadeUpTrial(KINDS, lambda policies: 1.0, lambda policies: 0.0)
    search = Search(trial, 0.1, time.monotonic() + 600, lambda *_: None)
    search.take_reference(blanket(FULL, kernels=False))
    search.add(blanket(LOW, kernels=False))
    try_mixed_plans(search, -1.0)
    assert search.notes == ["no mixed plan was tried: no time was left"]
    assert PrecisionConfig.from_dict(search.candidates[LOW].config.to_dict()).policy == LOW
