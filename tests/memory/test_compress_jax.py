"""Keras models under JAX, compressed: compiled loops, scopes of recomputation, and the way back."""

import keras
import numpy as np
import pytest

from deepseek_hpf.memory import compress_activations

pytestmark = pytest.mark.backend("jax")

RNG = np.random.default_rng()


def model(**options):
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(16, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="gelu"),
        keras.layers.Dense(4, name="head"),
    ]
    made = keras.Sequential(layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(0.05), loss, **options)
    return made


def alike(first, **options):
    """Another model with the same weights."""
    made = model(**options)
    made.set_weights(first.get_weights())
    return made


def data(size=40):
    return RNG.normal(size=(size, 8, 8, 3)).astype("float32"), RNG.integers(0, 4, size)


def trained(made, x, y):
    made.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    return [np.array(weight) for weight in made.get_weights()]


def assert_close(found, expected, before, error=0.1):
    """Steps that are close, each beside its own length."""
    for ours, theirs, start in zip(found, expected, before, strict=True):
        step = np.linalg.norm(theirs - start)
        assert np.linalg.norm(ours - theirs) <= error * step + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"steps_per_execution": 2}, {"jit_compile": False}], ids=str)
def test_it_trains_as_the_plain_model_does(options):
    plain = model(**options)
    before, packed = plain.get_weights(), alike(plain, **options)
    x, y = data()  # the last batch is smaller
    report = compress_activations(packed, smallest=0)
    assert len(report.compressed) == len(packed.layers)
    found, expected = trained(packed, x, y), trained(plain, x, y)
    assert_close(found, expected, before)
    assert not all(map(np.array_equal, found, expected))


@pytest.mark.slow
def test_a_model_that_has_trained_is_compiled_anew_each_way():
    """JAX runs the old trace of a function that it knows."""
    plain = model()
    made = alike(plain)
    x, y = data(16)
    assert all(map(np.array_equal, trained(made, x, y), trained(plain, x, y)))
    report = compress_activations(made, "int4", smallest=0)
    assert not all(map(np.array_equal, trained(made, x, y), trained(plain, x, y)))
    report.revert()
    made.set_weights(plain.get_weights())
    assert all(map(np.array_equal, trained(made, x, y), trained(plain, x, y)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["full", "activations"])
def test_within_a_scope_of_recomputation(mode):
    def made_within():
        with keras.RematScope(mode=mode):
            hidden = keras.layers.Dense(32, activation="gelu", name="hidden")
            layers = [keras.Input((64,)), hidden, keras.layers.Dense(1, name="head")]
            made = keras.Sequential(layers)
        made.compile(keras.optimizers.SGD(0.05), "mse")
        return made

    plain, packed = made_within(), made_within()
    packed.set_weights(plain.get_weights())
    before = plain.get_weights()
    x, y = RNG.normal(size=(32, 64)).astype("float32"), RNG.normal(size=(32, 1))
    compress_activations(packed, smallest=0)
    assert_close(trained(packed, x, y), trained(plain, x, y), before)


@pytest.mark.slow
def test_sparse_keeps_the_step():
    """Exact values in a program that XLA compiles otherwise: the last bits of sums may differ."""
    plain = model()
    before, packed = plain.get_weights(), alike(plain)
    x, y = data(16)
    compress_activations(packed, "sparse", smallest=0)
    assert_close(trained(packed, x, y), trained(plain, x, y), before, error=1e-4)
