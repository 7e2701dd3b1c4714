"""Estimates: their terms by hand, what they are of, and a model that is left as it was."""

import json
import random

import keras
import numpy as np
import pytest

from deepseek_hpf import PrecisionConfig, apply_policy
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory import compress_activations, estimate

RNG = np.random.default_rng()
ROWS = 64


def mlp(optimizer="adam"):
    layers = [keras.layers.Dense(256, activation="relu", name=f"hidden{i}") for i in range(2)]
    model = keras.Sequential([keras.Input((128,)), *layers, keras.layers.Dense(8, name="head")])
    model.compile(optimizer, "mse", metrics=["mae"])
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def test_terms_are_those_counted_by_hand():
    model = mlp()
    found = estimate(model, ROWS)
    count = model.count_params()
    assert count == 128 * 256 + 256 + 256 * 256 + 256 + 256 * 8 + 8
    assert found.parameters == found.gradients == 4 * count
    # Two moments, and a handful of counters and metrics.
    assert 8 * count <= found.slots <= 8 * count + 64
    assert found.batch == 4 * ROWS * (128 + 8)
    # The input of the second and of the third layer, at least; the first one's is the batch.
    assert found.kept >= 4 * ROWS * 2 * 256
    assert found.temporary >= found.kept
    assert found.total == found.parameters + found.slots + found.batch + found.temporary
    assert found.batch_size == ROWS
    assert found.model == model.name


def test_what_grows_with_the_batch_and_what_does_not():
    model = mlp("sgd")
    small, large = estimate(model, 256), estimate(model, 1024)
    assert (small.parameters, small.slots) == (large.parameters, large.slots)
    assert large.batch == 4 * small.batch
    assert 3.5 * small.kept < large.kept <= 4 * small.kept + 4096
    assert large.temporary > small.temporary


def test_bfloat16_keeps_about_half():
    def convolutions():
        layers = [keras.layers.Conv2D(16, 3, name=f"c{i}") for i in range(4)]
        model = keras.Sequential([keras.Input((20, 20, 1)), *layers, keras.layers.Flatten()])
        model.compile("sgd", "mse")
        return model

    plain = estimate(convolutions(), ROWS)
    low = estimate(convolutions(), ROWS, PrecisionConfig(policy="mixed_bfloat16", kernels=False))
    assert low.policy == "mixed_bfloat16"
    assert low.parameters == plain.parameters
    assert low.kept < 0.7 * plain.kept


@pytest.mark.parametrize("policy", [None, "mixed_bfloat16", "mixed_float16"], ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
def test_the_model_is_left_as_it_was(policy, trained):
    model = mlp()
    x, y = RNG.normal(size=(8, 128)).astype("float32"), RNG.normal(size=(8, 8)).astype("float32")
    if trained:
        model.train_on_batch(x, y)
    optimizer, attributes = model.optimizer, dict(vars(model))
    was_built, policies = optimizer.built, [each.dtype_policy.name for each in model.layers]
    before = state(model)
    random.seed(3)
    np.random.seed(3)
    estimate(model, ROWS, policy)
    drawn = (random.random(), np.random.random())
    random.seed(3)
    np.random.seed(3)
    assert drawn == (random.random(), np.random.random())
    assert model.optimizer is optimizer
    assert optimizer.built is was_built
    assert all(map(np.array_equal, before, state(model)))
    assert [each.dtype_policy.name for each in model.layers] == policies
    after = dict(vars(model))
    assert [key for key in attributes if attributes[key] is not after.get(key)] == []
    model.train_on_batch(x, y)


def test_random_layers_and_loops():
    layers = [keras.layers.LSTM(16), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((10, 4)), *layers])
    model.compile("sgd", "mse")
    before = state(model)
    found = estimate(model, ROWS)
    # Each of the ten steps keeps its state, which the next one's gradient needs.
    assert found.kept > 10 * ROWS * 16 * 4
    assert all(map(np.array_equal, before, state(model)))


def test_a_model_under_a_policy_is_taken_as_it_is():
    model = mlp()
    apply_policy(model, "mixed_bfloat16")
    assert estimate(model, ROWS).policy == "mixed_bfloat16"
    with pytest.raises(ConfigError, match="revert"):
        estimate(model, ROWS, "float32")


@pytest.mark.backend("torch")
@pytest.mark.parametrize("storage", ["int8", "sparse"])
def test_packed_activations_are_refused(storage):
    model = mlp()
    report = compress_activations(model, storage)
    with pytest.raises(ConfigError, match="depends on values"):
        estimate(model, ROWS)
    report.revert()
    assert estimate(model, ROWS).kept > 0


def test_it_prints_and_is_json(tmp_path):
    found = estimate(mlp("sgd"), ROWS)
    for words in ("parameters", "kept for the backward pass", "gradients", "total", "KiB"):
        assert words in str(found)
    found.to_json(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text())
    assert read == found.to_dict()
    assert read["total"] == found.total


def test_a_sample_says_what_a_subclassed_model_takes():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(2)

        def call(self, x):
            return self.head(x)

    model = Subclassed()
    model.compile("sgd", "mse")
    x, y = np.ones((3, 4), "float32"), np.ones((3, 2), "float32")
    with pytest.raises(ConfigError, match="not: call it on a batch"):
        estimate(model, ROWS)
    model(x)
    with pytest.raises(ConfigError, match="Give a batch of data"):
        estimate(model, ROWS)
    assert estimate(model, ROWS, sample=(x, y)).batch == ROWS * 6 * 4


def test_bad_arguments():
    model = mlp("sgd")
    for size in (0, -1, 1.5, True, "8"):
        with pytest.raises(ConfigError, match="batch_size"):
            estimate(model, size)
    with pytest.raises(TypeError, match=r"keras\.Model"):
        estimate("model", 8)
    with pytest.raises(ConfigError, match="compiled"):
        estimate(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), 8)
    with pytest.raises(ConfigError, match="training step of this batch"):
        estimate(model, 8, sample=(np.ones((2, 5)), np.ones((2, 8))))
    with pytest.raises(ConfigError, match="rows"):
        estimate(model, 8, sample=(np.ones((0, 128)), np.ones((0, 8))))
