"""What the controllers' tests share: a space of plans, and telemetry out of thin air."""

import json

from hypothesis import strategies as st

from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.blocks import blocks_of
from deepseek_hpf.scheduling.plan_space import PlanSpace
from deepseek_hpf.scheduling.telemetry import GradientStatistics, Overflow, Telemetry

LAYERS = ("stem", "norm", "head")


def space_of(layers=LAYERS, critical=("norm",), most=3):
    base = PrecisionPlan({name: LayerPlan(policy="mixed_float16") for name in layers})
    return PlanSpace(base, blocks_of(layers, most, critical))


def read_out(step, steps=50, *, layers=LAYERS, skipped=0, overflows=(), trouble=None, **figures):
    """Telemetry of healthy layers; `trouble` maps the name of a layer to other statistics."""
    healthy = {"gradient_norm": 1.0, "largest": 0.5, "weight_norm": 1.0, "update_norm": 1e-3}
    return Telemetry(
        step=step,
        steps=steps,
        skipped=skipped,
        scale=1024.0,
        overflows=overflows,
        layers={
            name: {
                "kernel": GradientStatistics(
                    elements=10, **{**healthy, **(trouble or {}).get(name, {})}
                )
            }
            for name in layers
        },
        **figures,
    )


def overflow(step, layer, cause="activation"):
    return Overflow(step=step, layer=layer, cause=cause, scale=1024.0)


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


def run(controller, reads):
    """Plans after each read-out."""
    plans = []
    for read in reads:
        before = controller.plan
        returned = controller.observe(read)
        assert returned is None or returned != before
        assert controller.plan == (before if returned is None else returned)
        plans.append(controller.plan)
    return plans


shares = st.sampled_from([0.0, 0.1, 0.6, 1.0])
norms = st.sampled_from([0.0, 1e-30, 0.5, 1.0, 1e3, 1e30, float("inf")])
statistics = st.builds(
    GradientStatistics,
    elements=st.integers(0, 3),
    gradient_norm=norms,
    underflow=shares,
    lost_updates=shares,
)


@st.composite
def hostile(draw, most=60, steps=None):
    """Any sequence of read-outs of the three layers."""
    step, reads = 0, []
    for _ in range(draw(st.integers(0, most))):
        covered = steps or draw(st.integers(1, 400))
        step += covered
        faults = st.builds(
            Overflow,
            step=st.integers(max(step - 3, 0), step - 1),
            cause=st.sampled_from(["loss_scale", "activation", "data", "unknown"]),
            phase=st.sampled_from(["forward", "loss", "backward", None]),
            layer=st.sampled_from([*LAYERS, "unknown", None]),
            scale=st.none() | st.just(2.0),
        )
        reads.append(
            Telemetry(
                step=step,
                steps=covered,
                skipped=draw(st.integers(0, covered)),
                layers={name: {"kernel": draw(statistics)} for name in LAYERS},
                overflows=tuple(draw(st.lists(faults, max_size=2))),
                loss=draw(st.sampled_from([None, 0.0, 1.0, 1e30, float("nan"), float("inf")])),
                step_seconds=draw(st.sampled_from([None, 0.01, 0.02, 5.0])),
            )
        )
    return reads
