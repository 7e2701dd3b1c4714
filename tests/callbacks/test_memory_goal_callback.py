"""`MemoryGoal`: the first batch of `fit` decides, and the fit is otherwise what it was."""

import warnings

import keras
import numpy as np
import pytest

from deepseek_hpf import PrecisionConfig
from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.callbacks import MemoryGoal, PrecisionOverrides
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.policy import MixedPrecisionPolicy

RNG = np.random.default_rng()
CONFIG = {"policy": "float32", "activations": {"memory_goal": 0.6}}


def model(**options):
    hidden = keras.layers.Dense(64, activation="gelu", name="hidden")
    layers = [keras.layers.Dense(64, name="first"), hidden, keras.layers.Dense(1, name="head")]
    made = keras.Sequential([keras.Input((64,)), *layers])
    made.compile(keras.optimizers.SGD(0.01), "mse", **options)
    return made


def data():
    return RNG.normal(size=(96, 64)).astype("float32"), RNG.normal(size=(96, 1))


def policy():
    return MixedPrecisionPolicy(config=PrecisionConfig.from_dict(CONFIG))


def test_the_first_batch_decides_and_all_batches_are_trained_on():
    plain, made = model(), model()
    made.set_weights(plain.get_weights())
    (x, y), goal = data(), MemoryGoal(policy())
    options = {"batch_size": 32, "epochs": 2, "shuffle": False, "verbose": 0}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="apply_policy")
        history = made.fit(x, y, callbacks=[PrecisionOverrides(policy()), goal], **options)
    expected = plain.fit(x, y, **options)
    assert 0 < goal.report.bytes_after <= 0.6 * goal.report.bytes_before
    assert goal.report.compressed
    assert int(made.optimizer.iterations) == 6
    # The first loss is of the weights as they were; the others of gradients that are a little off.
    np.testing.assert_allclose(history.history["loss"], expected.history["loss"], rtol=0.05)
    report = goal.report
    made.fit(x, y, callbacks=[goal], **options)
    assert goal.report is report


@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_in_one_execution():
    made, (x, y), goal = model(steps_per_execution=2), data(), MemoryGoal(0.6)
    made.fit(x, y, batch_size=32, verbose=0, callbacks=[goal])
    assert goal.report.compressed
    assert int(made.optimizer.iterations) == 3


def test_a_goal_that_cannot_be_met_ends_the_fit_and_leaves_the_model():
    made, (x, y) = model(), data()
    before = made.get_weights()
    with pytest.raises(ConfigError, match="goal of at least"):
        made.fit(x, y, verbose=0, callbacks=[MemoryGoal(1e-3)])
    assert not any("call" in vars(layer) for layer in made.layers)
    made.fit(x, y, verbose=0)
    assert not all(map(np.array_equal, made.get_weights(), before))


def test_a_policy_alone_says_that_nothing_follows_the_goal():
    with pytest.warns(UserWarning, match="MemoryGoal"):
        report = apply_policy(model(), policy())
    assert any("memory_goal" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("goal", "error", "message"),
    [
        ({"policy": "float32"}, ConfigError, "without that key"),
        (0, ConfigError, "memory_goal"),
        (1.5, ConfigError, "memory_goal"),
        ({"activations": {"goal": 0.5}}, ConfigError, "memory_goal"),
        ({"activations": "int8"}, ConfigError, "activations"),
        ([0.6], ConfigTypeError, "config"),
    ],
    ids=str,
)
def test_bad_goals(goal, error, message):
    with pytest.raises(error, match=message):
        MemoryGoal(goal)
