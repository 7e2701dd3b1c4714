"""Which layers move together."""

import keras
import numpy as np
import pytest
from scripted import BACKEND, fit, scripted

import deepseek_hpf as hpf
from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.dynamic.model_blocks import model_blocks


def blocks(model, most=20, policy="mixed_bfloat16"):
    report = hpf.apply_policy(model, policy)
    return {b.name: (b.layers, b.critical) for b in model_blocks(model, report.plan, most)}


def test_layers_made_of_layers_move_as_a_whole_and_models_within_do_not():
    inner = [keras.layers.Dense(4, name="a"), keras.layers.LayerNormalization(name="norm")]
    block = keras.Sequential([keras.Input((5, 4)), *inner], name="block")
    inputs = keras.Input((5, 4))
    x = block(inputs)
    x = keras.layers.Add(name="sum")([x, keras.layers.MultiHeadAttention(2, 2, name="mha")(x, x)])
    x = keras.layers.LSTM(3, name="lstm")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    found = blocks(model)
    assert list(found) == ["block/a", "block/norm", "mha", "sum", "lstm"]
    assert found["block/norm"] == (("block/norm",), ("block/norm",))
    assert found["sum"][1] == ("sum",)
    assert {"mha", "mha/query", "mha/value"} <= set(found["mha"][0])
    assert found["lstm"][0][0] == "lstm"
    assert len(found["lstm"][0]) == 2
    assert "head" not in {path for layers, _ in found.values() for path in layers}
    (merged,) = blocks(model, most=1).values()
    assert set(merged[0]) == {path for layers, _ in found.values() for path in layers}


def test_what_cannot_be_wider_is_in_no_block():
    layers = [
        keras.layers.Dense(4, dtype="bfloat16", name="narrow"),  # its variables are bfloat16
        keras.layers.Dense(4, name="low"),
        keras.layers.Dense(4, name="head"),
    ]
    assert list(blocks(keras.Sequential([keras.Input((4,)), *layers]))) == ["low"]
    assert (
        blocks(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), policy="float32") == {}
    )


class Residual(keras.Model):
    """Adds up the results of its layers in its own code."""

    def __init__(self):
        super().__init__(name="residual")
        self.first = keras.layers.Dense(4, name="first")
        self.second = keras.layers.Dense(4, name="second")
        self.head = keras.layers.Dense(1, name="head")

    def call(self, x):
        x = self.first(x)
        return self.head(x + self.second(x))


@pytest.mark.slow
@pytest.mark.parametrize("built", [True, False])
def test_a_subclassed_model_survives_every_promotion(built):
    model = Residual()
    if built:
        model(np.zeros((1, 4), "float32"))
    model.compile("sgd", "mse")
    random = np.random.default_rng()
    x, y = random.normal(size=(24, 4)).astype("float32"), random.normal(size=(24, 1))
    count = 1 if BACKEND == "tensorflow" else 3
    several = {1: (2, 0, 0), 2: (0, 2, 0), 3: (2, 2, 0), 4: (0, 0, 2)}
    moves = {1: (2,), 3: (0,)} if count == 1 else several
    made = []
    history = fit(model, x, y, DynamicPrecision("mixed_bfloat16", scripted(moves, made)))
    assert history.history["precision_switches"] == [len(moves)]
    assert len(made[0].space.blocks) == count
    assert np.isfinite(history.history["loss"]).all()
