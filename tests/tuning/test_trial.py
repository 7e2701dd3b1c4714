import random

import keras
import numpy as np
import pytest

from deepseek_hpf import ConfigError, PrecisionConfig, apply_policy
from deepseek_hpf.tuning.numerical_error import step_values
from deepseek_hpf.tuning.trial import trial

RNG = np.random.default_rng()
LOW = PrecisionConfig(policy="mixed_bfloat16")
FULL = PrecisionConfig(policy="float32")


def small_model(optimizer="adam"):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, activation="gelu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3, seed=7),
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def batch(rows=8):
    return RNG.random((rows, 6), "float32"), RNG.random((rows, 3), "float32")


def arrays_of(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    seeds = [s.state for layer in model.layers for s in layer._seed_generators]
    return [np.array(keras.ops.convert_to_numpy(v.value)) for v in [*variables, *seeds]]


def attributes_of(model):
    names = ("optimizer", "train_function", "test_function", "predict_function", "train_step")
    layers = [(layer.dtype_policy.name, "call" in vars(layer)) for layer in model.layers]
    compiled = model._compile_config.config["optimizer"]
    return [vars(model).get(n) for n in names], layers, model.dtype_policy.name, compiled


def assert_as_before(model, arrays, attributes):
    assert attributes_of(model) == attributes
    for was, now in zip(arrays, arrays_of(model), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_trial_leaves_the_model_as_it_was(is_trained):
    model, data = small_model(), batch()
    if is_trained:
        model.fit(*data, verbose=0)
    arrays, attributes, numbers = arrays_of(model), attributes_of(model), random.getstate()
    with trial(model, data) as made:
        low, full = made.prepare(LOW), made.prepare(FULL)
        made.time({"low": low, "full": full}, rounds=2, calls=1, deadline=0.0)
        made.values(LOW)
    assert_as_before(model, arrays, attributes)
    assert random.getstate() == numbers
    assert model.optimizer.built is is_trained or keras.backend.backend() != "tensorflow"


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_a_fault_leaves_the_model_as_it_was(fault):
    model, data = small_model(), batch()
    model.fit(*data, verbose=0)
    arrays, attributes = arrays_of(model), attributes_of(model)

    def interrupted():
        with trial(model, data) as made:
            made.prepare(LOW)
            raise fault

    with pytest.raises(fault):
        interrupted()
    assert_as_before(model, arrays, attributes)


def test_training_goes_on_as_without_a_trial():
    model, other, data = small_model(), small_model(), batch()
    other.set_weights(model.get_weights())
    for one in (model, other):
        one.fit(*data, verbose=0, shuffle=False)
    with trial(model, data) as made:
        made.prepare(PrecisionConfig(policy="mixed_float16"))
    for one in (model, other):
        one.fit(*data, verbose=0, shuffle=False)
    for ours, theirs in zip(arrays_of(model), arrays_of(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_each_candidate_runs_in_its_own_precision():
    seen = []

    class Watching(keras.layers.Layer):
        def call(self, x):
            seen.append(keras.backend.standardize_dtype(x.dtype))
            return x

    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3), Watching()])
    model.add(keras.layers.Dense(3))
    model.compile("sgd", "mse")
    with trial(model, batch()) as made:
        low, full = made.prepare(LOW), made.prepare(FULL)
        assert "bfloat16" in seen
        assert seen[-1] == "float32"
        traced = len(seen)
        made.time({"low": low, "full": full}, rounds=3, calls=1, deadline=1e30)
        if keras.backend.backend() == "torch":
            assert {"bfloat16", "float32"} <= set(seen[traced:])
        else:
            assert len(seen) == traced, "a turn has traced the step anew"


def test_values_are_those_of_the_weights_that_the_model_came_with():
    model, data = small_model("sgd"), batch()
    model.layers[2].rate = 0.0
    with trial(model, data) as made:
        exact = made.values(FULL)
        made.prepare(FULL)
        again, low = made.values(FULL), made.values(LOW)
    assert again.deviation(exact).gradients < 1e-5
    assert 1e-4 < low.deviation(exact).gradients < 0.2
    assert low.deviation(exact).loss < 0.05


def test_gradients_are_those_of_the_loss():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(keras.optimizers.SGD(), "mse")
    x, y = RNG.standard_normal((5, 2)), RNG.standard_normal((5, 1))
    kernel = model.get_weights()[0].astype("float64")
    values = step_values(model, (_tensor(x), _tensor(y), None))
    residual = x @ kernel - y
    assert values.loss == pytest.approx(np.mean(residual**2), rel=1e-5)
    np.testing.assert_allclose(values.gradients[0], 2 / 5 * x.T @ residual, rtol=1e-4, atol=1e-6)


def _tensor(values):
    return keras.ops.convert_to_tensor(values, "float32")


def test_a_model_with_a_policy_is_refused():
    model = small_model()
    report = apply_policy(model, "mixed_bfloat16")
    with pytest.raises(ConfigError, match="revert"), trial(model, batch()):
        pass
    report.revert()
    with trial(model, batch()):
        pass


def test_a_model_that_is_not_built_is_refused():
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ConfigError, match="built"), trial(model, batch()):
        pass
