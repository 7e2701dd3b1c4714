import keras
import numpy as np
import pytest

from deepseek_hpf import ConfigError
from deepseek_hpf.tuning.training_step import training_step, unpacked

RNG = np.random.default_rng()


def two_in_two_out():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    outputs = {
        "sum": keras.layers.Dense(1, name="sum")(joined),
        "kind": keras.layers.Dense(2, name="kind")(joined),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile("sgd", {"sum": "mse", "kind": "mse"})
    return model


def batch_for_two(rows=4):
    x = {"a": RNG.random((rows, 3), "float32"), "b": RNG.random((rows, 2), "float32")}
    y = {"sum": RNG.random((rows, 1), "float32"), "kind": RNG.random((rows, 2), "float32")}
    return x, y


def test_a_step_trains_as_train_on_batch_does():
    model, other = two_in_two_out(), two_in_two_out()
    other.set_weights(model.get_weights())
    x, y = batch_for_two()
    step = training_step(model, (x, y))
    for _ in range(2):
        step()
        other.train_on_batch(x, y)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_sample_weights_count():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = model.get_weights()
    training_step(model, (np.ones((3, 2)), np.ones((3, 1)), np.zeros(3)))()
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_model_that_is_not_compiled_is_refused():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match="compile"):
        training_step(model, (np.ones((3, 2)), np.ones((3, 1))))


@pytest.mark.parametrize(
    "batch", [None, np.ones(3), (np.ones(3),), (None, np.ones(3)), (1, 2, 3, 4)]
)
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(ConfigError, match="sample_weight"):
        unpacked(batch)


def test_objects_are_no_numbers():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ConfigError, match="numbers"):
        training_step(model, (np.array([[object(), object()]]), np.ones((1, 1))))
