"""A layer in several places, and a precision that changes while activations are compressed."""

import keras
import numpy as np
import pytest

from deepseek_hpf import PrecisionConfig
from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.memory import compress_activations
from deepseek_hpf.policy import MixedPrecisionPolicy

pytestmark = pytest.mark.slow

RNG = np.random.default_rng()


def model():
    inputs = keras.Input((64,))
    shared = keras.layers.Dense(64, activation="gelu", name="shared")
    outputs = keras.layers.Dense(1, name="head")(shared(shared(inputs)))
    made = keras.Model(inputs, outputs)
    made.compile(keras.optimizers.SGD(0.01), "mse")
    return made


def pair():
    """Two models of the same weights."""
    plain, packed = model(), model()
    packed.set_weights(plain.get_weights())
    return plain, packed


def data():
    return RNG.normal(size=(64, 64)).astype("float32"), RNG.normal(size=(64, 1))


def assert_close(found, expected, before):
    for ours, theirs, start in zip(found, expected, before, strict=True):
        step = np.linalg.norm(theirs - start)
        assert np.linalg.norm(ours - theirs) <= 0.1 * step + 1e-5


@pytest.mark.parametrize("storage", ["int8", "sparse", "recompute"])
def test_a_shared_layer(storage):
    plain, packed = pair()
    (x, y), before = data(), plain.get_weights()
    report = compress_activations(packed, storage, smallest=0)
    assert report.compressed.count("shared") == 1
    for made in (plain, packed):
        made.fit(x, y, shuffle=False, verbose=0)
    assert_close(packed.get_weights(), plain.get_weights(), before)
    report.revert()
    assert not any("call" in vars(layer) for layer in packed.layers)


def policy(rules):
    phases = [{"epoch": 0, "policy": "float32"}, {"epoch": 1}]
    config = {
        "policy": "mixed_bfloat16",
        "rules": rules,
        "dynamic": {"controller": "schedule", "schedule": phases},
    }
    return MixedPrecisionPolicy(config=PrecisionConfig.from_dict(config))


@pytest.mark.parametrize("storage", ["int4", "recompute"])
def test_precision_changes_under_rules_for_activations(storage):
    plain, packed = pair()
    (x, y), before = data(), plain.get_weights()
    rules = [{"layers": "shared", "activations": storage}]
    seen = []
    looking = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(shared.compute_dtype)
    )
    shared = packed.get_layer("shared")
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    dynamic = DynamicPrecision(policy(rules))
    packed.fit(x, y, callbacks=[dynamic, looking], **options)
    plain.fit(x, y, callbacks=[DynamicPrecision(policy([]))], **options)
    assert seen == ["float32", "bfloat16"]
    assert shared.call._deepseek_hpf_stores == storage
    found, expected = packed.get_weights(), plain.get_weights()
    for ours, theirs, start in zip(found, expected, before, strict=True):
        step = np.linalg.norm(theirs - start)
        assert np.linalg.norm(ours - theirs) <= 0.5 * step + 1e-5
    if storage == "int4":
        assert not all(map(np.array_equal, found, expected))
    dynamic.report.revert()
    assert not any("call" in vars(layer) for layer in packed.layers)
