"""A memory goal: what is measured, what is decided, and that nothing of it stays in the model."""

import re

import keras
import numpy as np
import pytest

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory import compress_activations

RNG = np.random.default_rng()
BACKEND = keras.backend.backend()


def model(**options):
    layers = [
        keras.Input((64,)),
        keras.layers.Dense(128, use_bias=False, name="first"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Dropout(0.2, seed=1, name="dropout"),
        keras.layers.Dense(64, activation="gelu", name="second"),
        keras.layers.Dense(1, name="head"),
    ]
    made = keras.Sequential(layers)
    made.compile("adam", "mse", **options)
    return made


def batch(size=128):
    return RNG.normal(size=(size, 64)).astype("float32"), RNG.normal(size=(size, 1))


def state(made):
    parts = made._flatten_layers()
    seeds = [generator.state for part in parts for generator in part._seed_generators]
    variables = [*made.variables, *made.optimizer.variables, *seeds]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(map(np.array_equal, found, expected))


def row(report, path):
    return next(each for each in report.rows if each.path == path)


def test_the_goal_is_met_and_the_model_is_as_it_was():
    made = model()
    x, y = batch()
    made.fit(x, y, verbose=0)
    before, predicted = state(made), made.predict(x, verbose=0)
    report = compress_activations(made, memory_goal=0.5, batch=(x, y))
    assert_same(state(made), before)
    assert 0 < report.bytes_after <= 0.5 * report.bytes_before
    assert report.compressed
    assert report.error < 0.5
    assert {r.path: r.storage for r in report.rows if r.storage}.keys() == set(report.compressed)
    assert all(0 <= each.bytes_after <= each.bytes_before for each in report.rows)
    assert f"{report.bytes_after:,}" in str(report)
    np.testing.assert_array_equal(made.predict(x, verbose=0), predicted)
    made.fit(x, y, verbose=0)
    report.revert()
    assert not any("call" in vars(layer) for layer in made.layers)


def test_a_goal_of_all_packs_nothing():
    report = compress_activations(model(), memory_goal=1, batch=batch())
    assert report.compressed == []
    assert report.bytes_after == report.bytes_before
    assert report.error == 0


@pytest.mark.slow
def test_a_lower_goal_costs_more_error():
    made, data = model(), batch()
    errors = []
    for goal in (0.9, 0.6, 0.3):
        report = compress_activations(made, memory_goal=goal, batch=data)
        errors.append(report.error)
        report.revert()
    assert errors == sorted(errors)


@pytest.mark.slow
def test_what_cannot_be_met_says_what_can():
    made, data = model(), batch()
    with pytest.raises(ConfigError, match="at least 0") as refused:
        compress_activations(made, memory_goal=0.001, batch=data)
    assert not any("call" in vars(layer) for layer in made.layers)
    least = float(re.search(r"at least ([\d.]+)", str(refused.value)).group(1))
    report = compress_activations(made, memory_goal=least, batch=data)
    assert report.bytes_after <= least * report.bytes_before


def test_the_error_is_that_of_the_gradient():
    """Of a linear layer only the weight's gradient moves: by what rounding does to its input."""
    made = keras.Sequential([keras.Input((256,)), keras.layers.Dense(8, use_bias=False)])
    made.compile("sgd", "mse")
    x, y = RNG.normal(size=(64, 256)).astype("float32"), RNG.normal(size=(64, 8))
    if BACKEND == "tensorflow":  # what the caller holds anyway is not packed there
        made = keras.Sequential([keras.Input((256,)), keras.layers.Rescaling(1.0), *made.layers])
        made.compile("sgd", "mse")
    report = compress_activations(made, memory_goal=0.3, batch=(x, y))
    (packed,) = (each for each in report.rows if each.storage)
    assert packed.storage == "int8"
    kernel = keras.ops.convert_to_numpy(made.layers[-1].kernel)
    upstream = 2 * (x @ kernel - y) / y.size
    exact = x.T.astype("float64") @ upstream
    step = np.ptp(x, axis=1, keepdims=True) / 254
    # The largest error there is: each value a whole step off, all to the worse.
    bound = np.linalg.norm(np.repeat(step, 256, 1).T @ np.abs(upstream)) / np.linalg.norm(exact)
    assert 1e-5 < packed.error < bound
    assert packed.bytes_before == 64 * 256 * 4
    assert packed.bytes_after == 64 * (256 + 8)


@pytest.mark.slow
def test_a_layer_decides_for_those_that_it_holds():
    inputs = keras.Input((16, 32))
    attention = keras.layers.MultiHeadAttention(2, 16, name="attention")
    shared = keras.layers.Dense(32, activation="gelu", name="shared")
    hidden = attention(inputs, inputs)
    outputs = keras.layers.Dense(1)(shared(shared(hidden)))
    made = keras.Model(inputs, outputs)
    made.compile("sgd", "mse")
    x, y = RNG.normal(size=(16, 16, 32)), RNG.normal(size=(16, 16, 1))
    report = compress_activations(made, memory_goal=0.5, batch=(x, y))
    held = [each for each in report.rows if each.path.startswith("attention/")]
    assert held
    assert all(each.reason == "'attention', which holds it, decides" for each in held)
    assert [each.path for each in report.rows].count("shared") == 1
    assert report.bytes_after <= 0.5 * report.bytes_before
    made.fit(x, y, verbose=0)


@pytest.mark.slow
def test_weights_in_the_batch_and_a_model_without_layers_that_keep():
    made, (x, y) = model(), batch()
    weights = RNG.uniform(0.5, 1.0, len(x))
    assert compress_activations(made, memory_goal=0.6, batch=(x, y, weights)).compressed
    flat = keras.Sequential([keras.Input((4, 16)), keras.layers.Flatten()])
    flat.compile("sgd", "mse")
    with pytest.raises(ConfigError, match="no trainable variables"):
        compress_activations(flat, memory_goal=0.6, batch=(np.ones((2, 4, 16)), np.ones((2, 64))))


def test_a_batch_that_is_not_finite_is_refused():
    made, (x, y) = model(), batch()
    x[3, 3] = np.nan
    with pytest.raises(ConfigError, match="finite"):
        compress_activations(made, memory_goal=0.6, batch=(x, y))
    assert not any("call" in vars(layer) for layer in made.layers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_goal": 0.6}, "no batch"),
        ({"batch": 1}, "without `memory_goal`"),
        ({"memory_goal": 0, "batch": 1}, "above 0 and at most 1"),
        ({"memory_goal": 1.5, "batch": 1}, "above 0 and at most 1"),
        ({"memory_goal": True, "batch": 1}, "above 0 and at most 1"),
        ({"memory_goal": float("nan"), "batch": 1}, "above 0 and at most 1"),
        ({"memory_goal": 0.6, "batch": 1, "storage": "int8"}, "a goal"),
        ({"memory_goal": 0.6, "batch": "words"}, "batch"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        compress_activations(model(), **options)


def test_a_model_that_is_not_compiled_is_refused():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(ConfigError, match="compiled model"):
        compress_activations(made, memory_goal=0.6, batch=(np.ones((2, 4)), np.ones((2, 1))))
