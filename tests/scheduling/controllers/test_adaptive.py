"""The controller that learns: it finds the best plan, explores within bounds, repeats itself."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_outs import LAYERS, hostile, read_out, run, space_of, through_json

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.controllers.adaptive import AdaptiveController
from deepseek_hpf.scheduling.controllers.create import create_controller

pytestmark = pytest.mark.pure


def make(space=None, **values):
    config = DynamicConfig(controller="adaptive", **values)
    return AdaptiveController(space or space_of(), config)


def low(plan):
    return {path for path, layer in plan.items() if layer.policy != "float32"}


def train(controller, looks, cost, loss=lambda low: 1.0):
    """Trains where each low layer changes the time of a step by `cost`, in seconds."""
    plans = []
    for look in range(looks):
        plans.append(controller.plan)
        now = low(controller.plan)
        seconds = 0.1 + sum(cost[name] for name in now)
        controller.observe(
            read_out(50 * look + 50, step_seconds=seconds, loss=loss(now) * 0.999**look)
        )
    return plans


def test_it_begins_in_float32_and_then_tries_what_was_planned():
    controller = make()
    plans = train(controller, 5, dict.fromkeys(LAYERS, -0.02))
    assert [low(plan) for plan in plans] == [set(), set(), set(LAYERS), set(LAYERS), low(plans[4])]


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_layer_that_is_better_left_in_float32(seed):
    cost = {"stem": -0.03, "norm": 0.03, "head": -0.02}
    plans = train(make(seed=seed), 150, cost)
    assert sum(low(plan) == {"stem", "head"} for plan in plans[75:]) >= 0.9 * 75


def test_a_layer_that_harms_the_loss_is_not_worth_its_speed():
    cost = dict.fromkeys(LAYERS, -0.02)
    plans = train(make(), 150, cost, loss=lambda low: 9.0 if "norm" in low else 1.0)
    assert sum("norm" not in low(plan) for plan in plans[75:]) >= 0.9 * 75


def test_events_say_what_is_tried_and_why():
    controller = make()
    train(controller, 2, dict.fromkeys(LAYERS, -0.02))
    (event,) = controller.events
    assert (event.kind, event.plan) == ("explore", controller.plan.digest())
    assert event.reason == "low: stem, norm, head; not tried yet"


def spent_on_lost(controller, reads):
    """Steps on plans that had lost when chosen, by a reckoning of the test's own."""
    lost = total = worst = 0
    means, is_lost = {}, False
    for read in reads:
        total += read.steps
        lost += read.steps if is_lost else 0
        worst = max(worst, lost / total)
        controller.observe(read)
        means = {levels: arm.mean for levels, arm in controller._arms.items() if arm.windows}
        mean = means.get(controller._levels)
        is_lost = mean is not None and mean < max(means.values())
    return worst


@settings(max_examples=40, deadline=None)
@given(hostile(steps=50), st.sampled_from([0.0, 0.05, 0.3]), st.integers(2, 5), st.integers(0, 9))
def test_exploration_and_plans_are_bounded_whatever_is_measured(reads, share, most, seed):
    controller = make(exploration=share, max_plans=most, seed=seed)
    plans = {controller.plan, *run(controller, reads)}
    assert len(plans) <= most
    assert spent_on_lost(make(exploration=share, max_plans=most, seed=seed), reads) <= share


@settings(max_examples=30, deadline=None)
@given(hostile(most=40), st.integers(0, 40), st.integers(0, 9))
def test_runs_repeat_and_resume_as_if_nothing_had_been(reads, cut, seed):
    whole, first, second = make(seed=seed), make(seed=seed), make(seed=seed)
    expected = run(whole, reads)
    plans = run(first, reads[:cut])
    second.set_state(through_json(first.get_state()))
    assert second.plan == first.plan
    assert plans + run(second, reads[cut:]) == expected
    assert second.get_state() == whole.get_state()


def test_a_foreign_state_is_refused_and_changes_nothing():
    controller = make()
    train(controller, 10, dict.fromkeys(LAYERS, -0.02))
    before = controller.get_state()
    other = make(space_of(most=2)).get_state()
    for wrong in (other, {}, {**before, "bandit": other["bandit"]}, {**before, "steps": 1}):
        with pytest.raises(ConfigError, match='controller "adaptive"'):
            controller.set_state(wrong)
    assert controller.get_state() == before


@pytest.mark.parametrize("name", ["static", "schedule", "threshold", "adaptive"])
def test_the_configuration_names_it(name):
    schedule = {"schedule": [{"step": 0}]} if name == "schedule" else {}
    config = DynamicConfig(controller=name, **schedule)
    controller = create_controller(config, space_of())
    assert controller.name == name
    read = dataclasses.replace(read_out(50), loss=None)
    assert controller.observe(read) is None
    controller.set_state(through_json(controller.get_state()))
