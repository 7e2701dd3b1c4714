"""What a window is worth, and the bandit that learns it."""

import math

import numpy as np
import pytest
from read_outs import read_out, through_json

from deepseek_hpf.scheduling.controllers.linear_bandit import LinearBandit
from deepseek_hpf.scheduling.controllers.reward import Reward

pytestmark = pytest.mark.pure


def judge(losses=(), seconds=0.2):
    reward = Reward()
    for loss in losses:
        reward = reward.after(
            read_out(50, loss=loss, step_seconds=seconds), in_float32=seconds is not None
        )
    return reward


@pytest.mark.parametrize(
    ("seconds", "skipped", "loss", "risk", "expected"),
    [
        (0.2, 0, 1.0, 0.0, 0.0),
        (0.1, 0, 1.0, 0.0, 0.5),
        (0.4, 0, 1.0, 0.0, -1.0),
        (1e9, 0, None, 0.0, -1.0),
        (None, 0, None, 0.0, 0.0),
        (0.1, 5, 1.0, 0.0, 0.1),
        (0.1, 50, 1.0, 0.0, -1.0),
        (0.1, 0, 1.0, 0.2, 0.3),
        (0.1, 0, math.nan, 0.0, -0.5),
        (0.1, 0, math.inf, 0.0, -0.5),
        (0.1, 0, 0.0, 0.0, 0.5),
        (0.1, 0, 1.1, 0.0, 0.5),
        (0.1, 0, 1e9, 0.0, -0.5),
    ],
)
def test_time_saved_less_what_it_cost(seconds, skipped, loss, risk, expected):
    read = read_out(100, loss=loss, step_seconds=seconds, skipped=skipped)
    assert judge([1.0] * 5).of(read, risk) == pytest.approx(expected)


def test_without_a_time_in_float32_nothing_is_saved():
    assert judge([1.0], seconds=None).of(read_out(100, step_seconds=1e-9), 0.0) == 0.0


def test_a_falling_loss_is_no_regression_and_a_noisy_one_has_room():
    falling = [math.exp(-i / 10) for i in range(30)]
    assert judge(falling).of(read_out(100, loss=falling[-1]), 0.0) == 0.0
    noisy = judge([0.5, 2.0] * 20)
    assert noisy.of(read_out(100, loss=3.0), 0.0) == 0.0
    assert noisy.of(read_out(100, loss=30.0), 0.0) < -0.3


def test_the_judge_goes_through_json():
    reward = judge([1.0, 2.0])
    assert Reward.from_dict(through_json(reward.to_dict())) == reward


def test_the_bandit_finds_the_weights():
    random = np.random.default_rng()
    truth = random.normal(size=4)
    bandit = LinearBandit(4, noise=0.0, seed=1)
    for _ in range(2000):
        x = random.normal(size=4)
        bandit.learn(x, float(x @ truth + 0.01 * random.normal()))
    np.testing.assert_allclose(bandit.scores(np.eye(4)), truth, atol=0.02)


def test_draws_spread_as_believed_and_narrow_with_what_is_learned():
    def spread(looks):
        bandit = LinearBandit(1, noise=0.5, seed=3)
        for _ in range(looks):
            bandit.learn([1.0], 0.0)
        return np.std([bandit.scores([[1.0]]) for _ in range(2000)])

    assert spread(0) == pytest.approx(0.5, rel=0.1)
    assert spread(99) == pytest.approx(0.05, rel=0.1)


def test_the_same_seed_draws_the_same_after_a_round_trip():
    first, second = (LinearBandit(2, noise=1.0, seed=5) for _ in range(2))
    first.learn([0.1, 0.3], 1 / 3)
    first.scores([[1.0, 0.0]])
    second.set_state(through_json(first.get_state()))
    actions = [[1.0, 2.0], [3.0, 4.0]]
    assert second.scores(actions) == first.scores(actions)
    assert LinearBandit(2, noise=1.0, seed=6).scores(actions) != LinearBandit(
        2, noise=1.0, seed=5
    ).scores(actions)
