"""Controllers of several processes switch to the same plan before the same step."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threaded_group import on_ranks

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.distributed.agreed_controller import AgreedController, from_values, to_values
from deepseek_hpf.distributed.coordination import Coordination
from deepseek_hpf.errors import PrecisionError
from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.blocks import blocks_of
from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.controllers.create import create_controller
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.plan_space import PlanSpace
from deepseek_hpf.scheduling.telemetry import GradientStatistics, Overflow, Telemetry

pytestmark = pytest.mark.pure

LAYERS = ("stem", "norm", "head")
BASE = PrecisionPlan({name: LayerPlan(policy="mixed_float16") for name in LAYERS})
SPACE = PlanSpace(BASE, blocks_of(LAYERS, 3, ()))
SLOW = BASE.replace({"stem": LayerPlan(policy="float32")})


class Impatient(Controller):
    """Promotes a layer where a step takes longer than a second."""

    name = "impatient"

    def observe(self, telemetry):
        seconds = telemetry.step_seconds
        event = Event(step=telemetry.step, kind="promote", reason="slow", plan=SLOW.digest())
        return self._go_to(BASE if seconds is None or seconds < 1 else SLOW, event)

    def get_state(self):
        return {"plan": self.plan.to_dict()}

    def set_state(self, state):
        self.plan = PrecisionPlan.from_dict(state["plan"])


def read(step, seconds=None, **figures):
    return Telemetry(step=step, steps=50, step_seconds=seconds, **figures)


def plans_of(reads_of_ranks, make=lambda: Impatient(BASE), before=lambda controller, rank: None):
    """What each rank's controller returned at each of its read-outs, and its plan."""

    def work(group):
        inner = make()
        before(inner, group.rank)
        controller = AgreedController(inner, Coordination(group, {}))
        outcomes = []
        for telemetry in reads_of_ranks[group.rank]:
            if controller.is_due(telemetry.step, telemetry.epoch):
                due = Telemetry(step=telemetry.step, steps=0, epoch=telemetry.epoch)
                outcomes.append((controller.observe(due), controller.plan))
            outcomes.append((controller.observe(telemetry), controller.plan))
        return outcomes

    return on_ranks(len(reads_of_ranks), work)


SECONDS = st.lists(st.floats(0.01, 100), min_size=2, max_size=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=4).map(lambda rows: [r[:2] for r in rows]))
def test_clocks_that_differ_do_not_part_the_plans(seconds):
    reads = [[read(50 * i, pair[rank]) for i, pair in enumerate(seconds)] for rank in range(2)]
    one, other = plans_of(reads)
    assert one == other
    for (_, plan), pair in zip(one, seconds, strict=True):
        assert plan == (SLOW if sum(pair) / 2 >= 1 else BASE)


def test_apart_they_would_have_parted():
    assert Impatient(BASE).observe(read(0, 0.5)) != Impatient(BASE).observe(read(0, 1.2))


def test_a_time_that_one_process_does_not_know_is_known_to_none():
    (one, _), (other, _) = (r[0] for r in plans_of([[read(0, 5.0)], [read(0, None)]]))
    assert one is other is None


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_another_plan_gives_way_to_the_leaders_before_the_first_step(odd, caplog):
    def before(controller, rank):
        if rank == odd:
            controller.plan = SLOW

    outcomes = plans_of([[read(0)]] * 3, before=before)
    leaders = SLOW if odd == 0 else BASE
    for rank, ((returned, plan), *_) in enumerate(outcomes):
        assert plan == leaders
        assert returned == (leaders if (rank == odd) != (odd == 0) else None)
    told = [record.getMessage() for record in caplog.records]
    assert any("disagrees with rank 0: " in line and "plan=" in line for line in told)


def test_another_telemetry_gives_way_to_the_leaders():
    made = lambda: create_controller(DynamicConfig(), SPACE)  # noqa: E731
    bad = read(50, skipped=1, overflows=(Overflow(step=3, cause="activation", layer="stem"),))
    for leaders, others in ((bad, read(50)), (read(50), bad)):
        one, other = plans_of([[leaders], [others]], made)
        assert one == other
        (alone,) = plans_of([[leaders]], made)
        assert one == alone


@pytest.mark.parametrize("name", ["static", "threshold", "adaptive"])
def test_the_controllers_decide_as_they_do_alone(name):
    made = lambda: create_controller(DynamicConfig(controller=name), SPACE)  # noqa: E731
    reads = []
    for i in range(12):
        overflow = Overflow(step=50 * i, cause="activation", layer=LAYERS[i % 3], scale=1024.0)
        statistics = GradientStatistics(elements=10, gradient_norm=1.0, underflow=0.1 * (i % 5))
        reads.append(
            read(
                50 * i,
                1.0,
                skipped=i % 2,
                overflows=(overflow,) * (i % 2),
                layers={layer: {"kernel": statistics} for layer in LAYERS},
                loss=1.0 / (1 + i),
            )
        )
    alone = [(*made_plan(controller, r),) for controller in [made()] for r in reads]
    one, other = plans_of([reads, reads], made)
    assert one == other == alone


def made_plan(controller, telemetry):
    assert not controller.is_due(telemetry.step, telemetry.epoch)
    return controller.observe(telemetry), controller.plan


def test_processes_at_different_steps_are_refused():
    errors = plans_of([[read(0)], [read(50)]])
    assert {type(error) for error in errors} == {PrecisionError}


def test_a_restored_state_is_compared_once_more():
    def work(group):
        controller = AgreedController(Impatient(BASE), Coordination(group, {}))
        assert not controller.is_due(0, 0)
        assert not controller.is_due(1, 0)
        controller.set_state({"plan": (BASE if group.rank else SLOW).to_dict()})
        due = controller.is_due(2, 0)
        return due, controller.observe(Telemetry(step=2, steps=0)), controller.plan

    assert on_ranks(2, work) == [(True, None, SLOW), (True, SLOW, SLOW)]


FIGURES = st.floats(0, 1e30)
TELEMETRY = st.builds(
    Telemetry,
    step=st.integers(0, 10**9),
    steps=st.integers(0, 100),
    epoch=st.integers(0, 100),
    scale=st.none() | FIGURES,
    loss=st.none() | FIGURES,
    step_seconds=st.none() | FIGURES,
    layers=st.dictionaries(
        st.text(max_size=5),
        st.dictionaries(
            st.text(max_size=5),
            st.builds(GradientStatistics, elements=st.integers(0, 9), gradient_norm=FIGURES),
        ),
        max_size=3,
    ),
    overflows=st.lists(
        st.builds(
            Overflow,
            step=st.integers(0, 9),
            cause=st.sampled_from(["data", "activation"]),
            layer=st.none() | st.text(max_size=5),
            samples=st.lists(st.integers(0, 9)).map(tuple),
        ),
        max_size=3,
    ).map(tuple),
)


@given(TELEMETRY)
def test_telemetry_comes_back_as_it_was(telemetry):
    assert from_values(json.loads(json.dumps(to_values(telemetry)))) == telemetry
    assert to_values(telemetry)["step"] == telemetry.step
    other = replace(telemetry, epoch=telemetry.epoch + 1)
    assert to_values(other) != to_values(telemetry)
