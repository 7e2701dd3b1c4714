"""The loss-scale transition, at both edges and against a model of it in plain Python."""

import math

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from deepseek_hpf.config import LossScaleConfig
from deepseek_hpf.optimizers.transition import ScaleRules, ScaleState, advance


def run(rules, state, outcomes):
    """Scales after each of `outcomes`, "+" finite and "-" overflow."""
    scales = []
    for outcome in outcomes:
        state = advance(state, outcome == "+", rules)
        scales.append(float(state.scale))
    return scales, state


def start(scale):
    return ScaleState(scale=scale, good_steps=0, overflows=0)


@pytest.mark.parametrize(
    ("rules", "scale", "outcomes", "expected"),
    [
        # jmp's DynamicLossScale: grows at the period, not before, and counts anew.
        ({"growth_steps": 2}, 10.0, "++++", [10, 20, 20, 40]),
        ({"growth_steps": 2}, 10.0, "+-++", [10, 5, 5, 10]),
        ({"growth_steps": 1, "growth_factor": 4.0}, 1.0, "++", [4, 16]),
        # DeepSpeed's DynamicLossScaler: from 2**8, every overflow halves, down to the floor.
        ({"growth_steps": 2}, 256.0, "-" * 10, [128, 64, 32, 16, 8, 4, 2, 1, 1, 1]),
        ({"growth_steps": 2}, 256.0, "--++--+++", [128, 64, 64, 128, 64, 32, 32, 64, 64]),
        # The floor may lie below one, and off the grid of the factors.
        ({"min_scale": 2.0**-14}, 2.0**-12, "----", [2**-13, 2**-14, 2**-14, 2**-14]),
        ({"min_scale": 3.0}, 5.0, "--", [3, 3]),
        # The ceiling: growth stops at it, also where the product would be infinite.
        ({"growth_steps": 1, "max_scale": 24.0}, 16.0, "++-", [24, 24, 12]),
        ({"growth_steps": 1, "growth_factor": 2.0**100, "max_scale": 2.0**126}, 2.0**120, "++-",
         [2.0**126, 2.0**126, 2.0**125]),
        # The n-th overflow in a row backs off, and those after it; a finite step resets.
        ({"hysteresis": 2}, 8.0, "-+--+---", [8, 8, 8, 4, 4, 4, 2, 1]),
        ({"hysteresis": 2, "growth_steps": 2}, 8.0, "+-++", [8, 8, 8, 16]),
    ],
)  # fmt: skip
def test_sequences(rules, scale, outcomes, expected):
    scales, _ = run(ScaleRules(**rules), start(scale), outcomes)
    assert scales == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("finite", [True, False])
def test_an_impossible_scale_heals(scale, finite):
    state = advance(start(scale), finite, ScaleRules())
    assert 1.0 <= float(state.scale) <= 2.0**24


def test_rules_of_a_configuration():
    config = LossScaleConfig(growth_steps=7, growth_factor=3.0, min_scale=0.5, hysteresis=2)
    rules = ScaleRules.from_config(config)
    assert (rules.growth_steps, rules.growth_factor, rules.min_scale) == (7, 3.0, 0.5)
    assert rules.hysteresis == 2


class TransitionModel(RuleBasedStateMachine):
    """Any sequence of steps, beside a reference that is written as one would say it (apex)."""

    @initialize(
        growth_steps=st.integers(1, 3),
        factors=st.tuples(st.sampled_from([1.5, 2.0, 8.0]), st.sampled_from([0.25, 0.5, 0.9])),
        exponents=st.tuples(st.integers(-14, 0), st.integers(0, 20)),
        hysteresis=st.integers(1, 3),
    )
    def begin(self, growth_steps, factors, exponents, hysteresis):
        self.rules = ScaleRules(
            growth_steps=growth_steps,
            growth_factor=factors[0],
            backoff_factor=factors[1],
            min_scale=2.0 ** exponents[0],
            max_scale=2.0 ** exponents[1],
            hysteresis=hysteresis,
        )
        self.state = start(1.0)
        self.scale, self.good, self.bad = 1.0, 0, 0

    @rule(finite=st.booleans())
    def step(self, finite):
        self.state = advance(self.state, finite, self.rules)
        if finite:
            self.bad, self.good = 0, self.good + 1
            if self.good == self.rules.growth_steps:
                self.good = 0
                self.scale = min(self.scale * self.rules.growth_factor, self.rules.max_scale)
        else:
            self.bad, self.good = self.bad + 1, 0
            if self.bad >= self.rules.hysteresis:
                self.scale = max(self.scale * self.rules.backoff_factor, self.rules.min_scale)

    @rule()
    def overflow_in_a_row(self):
        for _ in range(4):
            self.step(finite=False)

    @invariant()
    def agrees(self):
        if hasattr(self, "state"):
            assert float(self.state.scale) == pytest.approx(self.scale, rel=1e-5)
            assert (int(self.state.good_steps), int(self.state.overflows)) == (self.good, self.bad)
            assert self.rules.min_scale <= float(self.state.scale) <= self.rules.max_scale


TransitionModel.TestCase.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_any_sequence_agrees_with_the_reference = TransitionModel.TestCase
