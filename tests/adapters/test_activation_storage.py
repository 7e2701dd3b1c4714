"""The rule key `activations`: what a file says of a layer is done, reported, and taken back."""

import keras
import numpy as np
import pytest

from deepseek_hpf import apply_policy
from deepseek_hpf.callbacks import PrecisionOverrides
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.memory import compress_activations
from deepseek_hpf.policy import MixedPrecisionPolicy

RNG = np.random.default_rng()


def model():
    block = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(64, name="inner")], name="block"
    )
    layers = [block, keras.layers.ReLU(name="relu"), keras.layers.Dense(1, name="head")]
    made = keras.Sequential([keras.Input((64,)), *layers])
    made.compile("sgd", "mse")
    return made


def policy(*rules, **keys):
    settings = {"policy": "float32", "rules": list(rules), **keys}
    return MixedPrecisionPolicy(config=PrecisionConfig.from_dict(settings))


def stored(made):
    layers = {layer.name: layer for layer in made._flatten_layers()}
    return {n: getattr(x.call, "_deepseek_hpf_stores", None) for n, x in layers.items()}


def test_rules_are_done_reported_and_taken_back():
    made = model()
    rules = [
        {"layers": "block", "activations": "int8"},
        {"layers": "relu", "activations": "sparse"},
        {"layers": "head", "activations": "int8"},
        {"layers": "head", "activations": None},
    ]
    report = apply_policy(made, policy(*rules))
    found = stored(made)
    assert (found["inner"], found["relu"], found["head"]) == ("int8", "sparse", None)
    assert report.row("block/inner").activations == "int8"
    assert report.row("block").activations is None
    assert report.row("block").activations_refusal == "its layers are taken one by one"
    assert report.plan["block/inner"].activations == "int8"
    assert report.plan["block"].activations is None
    assert report.plan["head"].activations is None
    assert "activations: int8: in block/inner" in str(report)
    assert report.warnings == []
    assert not apply_policy(made, policy(*rules)).changed
    assert apply_policy(made, policy(*rules[:1], rules[2])).changed
    assert stored(made)["relu"] is None
    report.revert()
    assert not any("call" in vars(layer) for layer in made._flatten_layers())


def test_training_by_the_callback_and_compression_beside_it():
    made = model()
    x, y = RNG.normal(size=(32, 64)).astype("float32"), np.ones((32, 1), "float32")
    settings = policy({"layer_type": "Dense", "activations": "recompute"})
    made.fit(x, y, verbose=0, callbacks=[PrecisionOverrides(settings)])
    assert stored(made)["inner"] == "recompute"
    report = compress_activations(made, "sparse")
    assert report.compressed == ["relu"]
    assert report.refused["head"] == "a rule says how it keeps them"
    assert "activations are compressed" in str(
        apply_policy(made, policy({"layers": "relu", "activations": "int8"}))
    )


def test_unbuilt_layers_get_theirs_when_they_are_built():
    made = keras.Sequential([keras.layers.Dense(4, name="late")])
    report = apply_policy(made, policy({"layers": "late", "activations": "int8"}))
    assert report.row("late").activations_refusal == "it is not built"
    made.build((None, 8))
    assert report.row("late").activations == "int8"
    assert stored(made)["late"] == "int8"


@pytest.mark.backend("tensorflow", "torch")
def test_a_kernel_is_next_to_the_layer():
    block = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, name="inner", activation="gelu")]
    )
    rule = {"layers": "inner", "activations": "recompute"}
    report = apply_policy(block, policy(rule))
    row = report.row("inner")
    assert row.activations == "recompute"
    assert np.isfinite(block.predict(np.ones((4, 8), "float32"), verbose=0)).all()
