"""The clipping rules against float64 references, and their configuration."""

import dataclasses

import numpy as np
import pytest
from keras import ops

from deepseek_hpf import config
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers import clipping


def clip(rule, gradients, weights=None, norm=None, state=None):
    gradients = [np.asarray(g, "float32") for g in gradients]
    if norm is None:
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients))
    tensors = [ops.convert_to_tensor(g) for g in gradients]
    weights = [ops.convert_to_tensor(np.asarray(w, "float32")) for w in weights or gradients]
    decision = rule.decide(tensors, weights, ops.convert_to_tensor(float(norm)), state or {})
    clipped = rule.apply(tensors, decision.divisor)
    return [ops.convert_to_numpy(g) for g in clipped], bool(decision.clipped), decision.state


def test_global_norm():
    gradients = [[3.0, 0.0], [[-4.0]], np.zeros((0, 2))]
    clipped, flag, _ = clip(clipping.GlobalNorm(1.0), gradients)
    assert flag
    np.testing.assert_allclose(clipped[0], [0.6, 0.0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[-0.8]], rtol=1e-6)
    kept, flag, _ = clip(clipping.GlobalNorm(5.0), gradients)
    assert not flag
    np.testing.assert_array_equal(kept[0], np.float32([3.0, 0.0]))


@pytest.mark.parametrize("size", [1e25, 1e35])
def test_global_norm_of_enormous_gradients(size):
    clipped, flag, _ = clip(clipping.GlobalNorm(1.0), [[size, 0.0]], norm=size)
    assert flag
    np.testing.assert_allclose(clipped[0], [1.0, 0.0], rtol=1e-5)


def test_value():
    clipped, flag, _ = clip(clipping.Value(0.3), [[0.1, -0.5, 0.3]])
    assert flag
    np.testing.assert_array_equal(clipped[0], np.float32([0.1, -0.3, 0.3]))
    assert not clip(clipping.Value(0.5), [[0.5]])[1]


def reference_adaptive(gradient, weight, ratio, epsilon=1e-3):
    """Unit-wise, in float64, as the paper writes it."""
    gradient, weight = gradient.astype("float64"), weight.astype("float64")
    axes = tuple(range(gradient.ndim - 1)) or None
    size = np.sqrt((gradient**2).sum(axis=axes, keepdims=True))
    allowed = ratio * np.maximum(np.sqrt((weight**2).sum(axis=axes, keepdims=True)), epsilon)
    return np.where(size > allowed, gradient * allowed / np.where(size, size, 1.0), gradient)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (4, 3), (3, 3, 2, 5), (0, 4)])
def test_adaptive(shape):
    random = np.random.default_rng()
    gradient = (random.normal(size=shape) * 10.0 ** random.integers(-3, 3, size=shape[-1:])).astype(
        "float32"
    )
    weight = random.normal(size=shape).astype("float32")
    clipped, _, _ = clip(clipping.Adaptive(0.05), [gradient], [weight])
    np.testing.assert_allclose(
        clipped[0], reference_adaptive(gradient, weight, 0.05), rtol=1e-5, atol=1e-12
    )


def test_adaptive_at_the_edges():
    zero = np.zeros((2, 2))
    assert not clip(clipping.Adaptive(0.01), [zero], [zero])[1]
    clipped, flag, _ = clip(clipping.Adaptive(0.01), [np.full((2, 1), 1e25)], [zero[:, :1]], 1e25)
    assert flag
    np.testing.assert_allclose(np.linalg.norm(clipped[0]), 1e-5, rtol=1e-4)


class Stream:
    """Feeds norms to an anomaly rule; holds its state."""

    def __init__(self, rule):
        self.rule, self.state = rule, None

    def __call__(self, norm):
        state = self.state or self.rule.initial_state()
        state = {k: ops.convert_to_tensor(np.float32(v)) for k, v in state.items()}
        clipped, flag, state = clip(self.rule, [[norm]], norm=norm, state=state)
        self.state = {name: float(value) for name, value in state.items()}
        return float(clipped[0][0]), flag


@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_normal_norms_are_never_cut(sigma):
    random = np.random.default_rng(7)
    stream = Stream(clipping.Anomaly(warmup=20))
    trend = np.linspace(2.0, -1.0, 300)  # norms that fall as training goes on
    flags = [stream(float(np.exp(x)))[1] for x in trend + sigma * random.normal(size=300)]
    assert not any(flags)


def test_abnormal_norms_are_cut_and_do_not_move_the_statistics():
    random = np.random.default_rng(3)
    stream = Stream(clipping.Anomaly(z=4.0, warmup=20))
    for x in 0.1 * random.normal(size=60):
        stream(float(np.exp(x)))
    before = dict(stream.state)
    margin = max(4.0 * before["log_norm_variance"] ** 0.5, np.log(2.0))
    cut, flag = stream(1e25)
    assert flag
    assert cut == pytest.approx(np.exp(before["log_norm_mean"] + margin), rel=1e-4)
    assert stream.state["log_norm_mean"] - before["log_norm_mean"] <= margin / 60 * 1.01
    assert not stream(1.0)[1]


def test_a_lasting_change_of_level_is_adopted():
    stream = Stream(clipping.Anomaly(z=4.0, warmup=5))
    for _ in range(20):
        stream(1.0)
    flags = [stream(10.0)[1] for _ in range(60)]
    assert flags[0]
    assert not flags[-1]


def test_anomaly_in_the_first_steps_and_zero():
    stream = Stream(clipping.Anomaly())
    assert not stream(0.0)[1]
    assert stream.state["log_norm_steps"] == 0.0
    assert not stream(5.0)[1]
    assert not stream(100.0)[1]
    assert stream(1e30)[1]


RULES = [
    (config.GlobalNormConfig(max_norm=2.0), clipping.GlobalNorm(2.0)),
    (config.ValueConfig(limit=0.5), clipping.Value(0.5)),
    (config.AdaptiveConfig(ratio=0.01), clipping.Adaptive(0.01)),
    (config.AnomalyConfig(z=5.0), clipping.Anomaly(z=5.0)),
]


@pytest.mark.parametrize(("section", "rule"), RULES)
def test_configuration_round_trip(section, rule):
    assert clipping.from_config(section) == rule
    assert clipping.from_config(rule.get_config()) == rule
    assert clipping.from_config(rule) is rule
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.kind_ = 1


def test_refusals():
    assert clipping.from_config(None) is None
    with pytest.raises(ConfigError, match="kind='norm'"):
        clipping.from_config({"kind": "norm"})
    with pytest.raises(ConfigTypeError, match="float"):
        clipping.from_config(1.0)
    with pytest.raises(ConfigTypeError, match="arguments of Value"):
        clipping.from_config({"kind": "value", "max_norm": 1})
    for bad in (0.0, -1.0, np.inf, np.nan, 1e-45):
        with pytest.raises(ConfigError, match="max_norm"):
            clipping.GlobalNorm(bad)
    for bad in ("1", None, True):
        with pytest.raises(ConfigTypeError, match="limit"):
            clipping.Value(bad)
    with pytest.raises(ConfigError, match="decay"):
        clipping.Anomaly(decay=1.0)
