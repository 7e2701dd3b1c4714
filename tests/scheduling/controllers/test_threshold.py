"""The threshold controller: what promotes, what demotes, and that it cannot oscillate."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_outs import LAYERS, hostile, overflow, read_out, run, space_of, through_json

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.controllers.threshold import ThresholdController

pytestmark = pytest.mark.pure


def make(space=None, **settings):
    return ThresholdController(space or space_of(), DynamicConfig(**settings))


def wide(controller):
    """Layers that the controller has in float32."""
    return {path for path, layer in controller.plan.items() if layer.policy == "float32"}


def calm(controller, start, looks, **options):
    step = start
    for _ in range(looks):
        step += 50
        controller.observe(read_out(step, **options))
    return step


def test_healthy_layers_are_left_alone():
    controller = make()
    calm(controller, 0, 100)
    assert wide(controller) == set()


def test_an_overflowing_activation_promotes_its_block_at_once_and_keeps_the_scale():
    controller = make()
    plan = controller.observe(read_out(7, 7, skipped=1, overflows=(overflow(6, "stem"),)))
    assert plan is controller.plan
    assert wide(controller) == {"stem"}
    (event,) = controller.events
    assert (event.kind, event.block, event.scale) == ("promote", "stem", 1024.0)
    assert event.reason == "stem overflowed at step 6 (activation)"
    assert event.plan == plan.digest()


def test_a_sublayer_at_fault_promotes_the_block_that_holds_it():
    controller = make()
    controller.observe(read_out(7, 7, overflows=(overflow(6, "head/inner/dense"),)))
    assert wide(controller) == {"head"}


def test_bad_data_blames_no_layer():
    controller = make()
    for step in range(1, 20):
        faults = (overflow(step - 1, None, "data"), overflow(step - 1, "stem", "data"))
        assert controller.observe(read_out(step, 1, skipped=1, overflows=faults)) is None


@pytest.mark.parametrize(
    ("steps", "promoted"), [([4, 5], True), ([4, 6], False), ([4, 400], False)]
)
def test_the_scale_is_to_blame_for_one_step_but_not_for_two_in_a_row(steps, promoted):
    controller = make()
    for step in steps:
        fault = overflow(step, "stem", "loss_scale")
        controller.observe(read_out(step + 1, 1, skipped=1, overflows=(fault,)))
    assert (wide(controller) == {"stem"}) is promoted


def test_critical_layers_go_first_where_no_other_is_known_to_be_at_fault():
    space = space_of(most=1)
    controller = make(space)
    trouble = {name: {"underflow": 0.9} for name in LAYERS}
    controller.observe(read_out(50, trouble=trouble))
    assert wide(controller) == {"norm"}
    controller.observe(read_out(100, trouble=trouble))
    assert wide(controller) == set(LAYERS)
    named = make(space)
    named.observe(read_out(50, overflows=(overflow(3, "stem"),)))
    assert wide(named) == set(LAYERS)


def test_an_outlier_of_the_log_norm_promotes():
    controller = make(outlier_z=4.0)
    for look in range(40):
        norm = 1.1 if look % 2 else 0.9
        controller.observe(read_out(50 * look, trouble={"stem": {"gradient_norm": norm}}))
    controller.observe(read_out(2000, trouble={"stem": {"gradient_norm": 1.9}}))
    assert wide(controller) == set()  # less than twice the usual is none, however steady it was
    controller.observe(read_out(2050, trouble={"stem": {"gradient_norm": 50.0}}))
    assert wide(controller) == {"stem"}
    assert controller.events[0].reason.startswith("gradient norm 50, usually 1")


@pytest.mark.parametrize(("name", "words"), [("underflow", "underflows"), ("lost_updates", "lost")])
def test_shares_beyond_the_bound_promote(name, words):
    controller = make(**{name: 0.3})
    controller.observe(read_out(50, trouble={"stem": {name: 0.3}}))
    assert wide(controller) == set()
    controller.observe(read_out(100, trouble={"stem": {name: 0.31}}))
    assert wide(controller) == {"stem"}
    assert controller.events[0].reason.startswith("31% of its ")
    assert words in controller.events[0].reason


def test_zeros_that_float32_shows_as_well_do_not_promote_again():
    """An embedding: most rows of a batch are unused."""
    controller = make(calm_steps=100)
    trouble = {"stem": {"underflow": 0.97}}
    calm(controller, 0, 1, trouble=trouble)
    assert wide(controller) == {"stem"}
    calm(controller, 50, 50, trouble=trouble)
    assert wide(controller) == set()
    controller.observe(read_out(9000, trouble={"stem": {"underflow": 0.99}}))
    assert wide(controller) == {"stem"}  # two thirds of what float32 kept


def test_calm_doubles_each_time_and_one_block_goes_at_a_time():
    controller = make(calm_steps=100)
    step = 0
    for needed in (100, 200, 400):
        step += 1
        faults = (overflow(step - 1, "stem"),)
        controller.observe(read_out(step, 1, skipped=1, overflows=faults))
        assert wide(controller) == {"stem"}
        step = calm(controller, step, needed // 50 - 1)
        assert wide(controller) == {"stem"}
        step = calm(controller, step, 1)
        assert wide(controller) == set()
        assert controller.events[0].reason == f"calm for {needed} steps"
    both = make(calm_steps=100)
    both.observe(read_out(1, 1, overflows=(overflow(0, "stem"), overflow(0, "head"))))
    assert wide(both) == {"stem", "head"}
    calm(both, 1, 2)
    assert wide(both) == {"head"}
    calm(both, 101, 1)
    assert wide(both) == {"head"}
    calm(both, 151, 1)
    assert wide(both) == set()


def test_nothing_is_demoted_while_steps_are_skipped():
    controller = make(calm_steps=50)
    controller.observe(read_out(1, 1, overflows=(overflow(0, "stem"),)))
    calm(controller, 1, 10, skipped=1)
    assert wide(controller) == {"stem"}


def test_plans_are_bounded_and_the_way_up_is_always_open():
    controller = make(max_plans=2)
    controller.observe(read_out(1, 1, overflows=(overflow(0, "stem"),)))
    assert wide(controller) == set(LAYERS)
    assert [event.block for event in controller.events] == list(LAYERS)
    assert controller.events[1].reason == "no other way up with at most 2 plans"


bounds = st.fixed_dictionaries(
    {
        "calm_steps": st.sampled_from([1, 50, 400]),
        "max_plans": st.integers(2, 6),
        "outlier_z": st.sampled_from([0.5, 6.0]),
        "underflow": st.sampled_from([0.0, 0.5]),
    }
)


@settings(max_examples=60, deadline=None)
@given(hostile(), bounds, st.integers(1, 3))
def test_it_never_oscillates(reads, values, most):
    space = space_of(most=most)
    controller = make(space, **values)
    plans = [controller.plan, *run(controller, reads)]
    total = sum(read.steps for read in reads)
    bound = 2 + 2 * math.log2(1 + total / values["calm_steps"])
    for block in space.blocks:
        state = [[plan[path].policy for path in block.layers] for plan in plans]
        moves = sum(a != b for a, b in itertools.pairwise(state))
        assert moves <= bound
    assert len(set(plans)) <= values["max_plans"]


@settings(max_examples=40, deadline=None)
@given(hostile(most=30), bounds, st.integers(0, 30))
def test_a_run_that_is_resumed_goes_on_as_if_nothing_had_been(reads, values, cut):
    whole, first, second = make(**values), make(**values), make(**values)
    expected = run(whole, reads)
    plans = run(first, reads[:cut])
    second.set_state(through_json(first.get_state()))
    assert second.plan == first.plan
    assert plans + run(second, reads[cut:]) == expected
    assert second.get_state() == whole.get_state()
    assert second.events == whole.events or not reads[cut:]


def test_a_state_of_other_blocks_is_refused_and_changes_nothing():
    controller = make()
    state = make(space_of(most=2)).get_state()
    before = controller.get_state()
    for wrong in (state, {}, {"blocks": 3}, {**before, "since_demotion": None, "seen": 1}):
        with pytest.raises(ConfigError, match='controller "threshold"'):
            controller.set_state(wrong)
    assert controller.get_state() == before
