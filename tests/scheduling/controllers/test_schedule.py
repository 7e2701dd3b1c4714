"""Controllers that look at nothing but the step."""

import pytest
from read_outs import read_out, space_of, through_json

from deepseek_hpf.config_dynamic import SchedulePhase
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import LayerPlan
from deepseek_hpf.scheduling.controllers.schedule import ScheduleController
from deepseek_hpf.scheduling.controllers.static import StaticController

pytestmark = pytest.mark.pure

BASE = space_of().base
WARM_UP_AND_FINISH = [
    SchedulePhase(step=0, policy="float32"),
    SchedulePhase(step=100),
    SchedulePhase(epoch=3, policy="mixed_bfloat16"),
]


def policies(controller):
    return {layer.policy for layer in controller.plan.values()}


def test_static_keeps_its_plan():
    controller = StaticController(BASE)
    for step in (50, 100):
        assert controller.observe(read_out(step, skipped=50)) is None
    assert controller.plan == BASE
    controller.set_state(through_json(controller.get_state()))
    assert controller.events == ()


def test_phases_by_step_and_by_epoch():
    controller = ScheduleController(BASE, WARM_UP_AND_FINISH)
    assert policies(controller) == {"float32"}
    assert controller.observe(read_out(50)) is None
    assert controller.observe(read_out(99)) is None
    assert controller.observe(read_out(100)) == BASE
    (event,) = controller.events
    assert (event.step, event.kind, event.plan) == (100, "phase", BASE.digest())
    assert event.reason == "the schedule from step 100 on: as planned"
    assert controller.observe(read_out(120, epoch=2)) is None
    assert controller.events == ()
    controller.observe(read_out(150, epoch=3))
    assert policies(controller) == {"mixed_bfloat16"}
    assert "epoch 3" in controller.events[0].reason


def test_before_the_first_phase_the_base_plan_holds():
    controller = ScheduleController(BASE, [SchedulePhase(epoch=1, policy="float32")])
    assert controller.plan == BASE
    assert controller.observe(read_out(9, epoch=0)) is None


def test_what_is_in_float32_stays_there():
    base = BASE.replace({"head": LayerPlan(policy="float32"), "aside": LayerPlan(kernel=True)})
    phases = [SchedulePhase(step=0, policy="mixed_bfloat16")]
    plan = ScheduleController(base, phases).plan
    assert plan.changes_from(base) == ("norm", "stem")


def test_two_phases_of_one_policy_are_one_plan():
    phases = [SchedulePhase(step=s, policy="float32") for s in (0, 10)]
    controller = ScheduleController(BASE, phases)
    assert controller.observe(read_out(10)) is None
    assert len(controller.events) == 1


def test_state_goes_on():
    controller = ScheduleController(BASE, WARM_UP_AND_FINISH)
    controller.observe(read_out(100))
    other = ScheduleController(BASE, WARM_UP_AND_FINISH)
    other.set_state(through_json(controller.get_state()))
    assert other.plan == controller.plan == BASE
    assert other.observe(read_out(150)) is None


@pytest.mark.parametrize("state", [{}, {"phase": 3}, {"phase": "x"}])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ConfigError, match='controller "schedule"'):
        ScheduleController(BASE, WARM_UP_AND_FINISH).set_state(state)
