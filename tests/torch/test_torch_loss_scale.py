"""The loss scale moves once a round, by the rule that the Keras side has."""

import random
import threading

import pytest

from deepseek_hpf.config import LossScaleConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.torch.loss_scale import LossScale

pytestmark = pytest.mark.pure


def create(scale=8.0, **rules):
    return LossScale(LossScaleConfig(initial_scale=scale, growth_steps=2, **rules))


def scales_after(loss_scale, rounds):
    """`"b"` is a backward pass, `"+"` a step, `"-"` a skipped one; returns the scales of `"b"`."""
    scales = []
    for event in rounds:
        if event == "b":
            scales.append(loss_scale.for_backward())
        else:
            loss_scale.stepped(finite=event == "+")
    return scales, loss_scale.scale


@pytest.mark.parametrize(
    ("events", "scales", "last"),
    [
        ("b+b+b+", [8, 8, 16], 16),
        ("b-b-b+", [8, 4, 2], 2),
        # Several passes and several steps are one round, an overflow in any of them one overflow.
        ("bb++bb+-b", [8, 8, 8, 8, 4], 4),
        ("b-+b--", [8, 4], 2),
        # Accumulation: passes without a step wait.
        ("bbbb+bbbb+", [8] * 8, 16),
        # Steps that no scaled pass served do not count.
        ("+++---b", [8], 8),
        ("b+++++b", [8, 8], 8),
        # The scale on its floor and at its ceiling.
        ("b-" * 5, [8, 4, 2, 1, 1], 1),
        ("b+" * 6, [8, 8, 16, 16, 32, 32], 32),
    ],
)
def test_rounds(events, scales, last):
    assert scales_after(create(max_scale=32.0), events) == (scales, last)


def test_hysteresis():
    assert scales_after(create(hysteresis=2), "b-b-b-b+b-b-") == ([8, 8, 4, 2, 2, 2], 1)


def test_any_sequence_agrees_with_the_transition_of_keras():
    from deepseek_hpf.optimizers.transition import ScaleRules, ScaleState, advance

    config = LossScaleConfig(growth_steps=3, growth_factor=1.5, backoff_factor=0.3, hysteresis=2)
    loss_scale, rules = LossScale(config), ScaleRules.from_config(config)
    state = ScaleState(scale=config.initial_scale, good_steps=0, overflows=0)
    source = random.Random(0)
    for _ in range(60):
        finite = source.random() < 0.6
        loss_scale.for_backward()
        loss_scale.stepped(finite=finite)
        state = advance(state, finite, rules)
        assert loss_scale.scale == pytest.approx(float(state.scale), rel=1e-5)
        assert loss_scale.state_dict()["_growth_tracker"] == int(state.good_steps)


def test_off():
    loss_scale = create(None)
    assert (loss_scale.enabled, loss_scale.scale) == (False, 1.0)


def test_state_goes_on_within_a_round():
    one, other = create(hysteresis=2), create(4.0)
    scales_after(one, "b+b-")
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict()
    assert one.state_dict()["overflows"] == 1


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_heals(scale):
    loss_scale = create()
    loss_scale.load_state_dict({**loss_scale.state_dict(), "scale": scale})
    assert 1.0 <= loss_scale.scale <= 2.0**24


@pytest.mark.parametrize(
    "change", [{"growth_factor": 1.0}, {"backoff_factor": 2.0}, {"growth_interval": 0}]
)
def test_constants_out_of_range_change_nothing(change):
    loss_scale = create()
    before = loss_scale.state_dict()
    with pytest.raises(ConfigError):
        loss_scale.load_state_dict({**before, **change})
    assert loss_scale.state_dict() == before


def test_threads_do_not_lose_a_round():
    loss_scale = create(2.0**20, backoff_factor=0.99, max_scale=2.0**20)

    def overflow():
        for _ in range(200):
            loss_scale.for_backward()
            loss_scale.stepped(finite=False)

    threads = [threading.Thread(target=overflow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loss_scale.state_dict()["overflows"] > 0
    assert 1.0 <= loss_scale.scale < 2.0**20
