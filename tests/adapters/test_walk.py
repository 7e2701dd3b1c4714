import keras
import pytest
from keras import layers

from deepseek_hpf.adapters.walk import MAX_PLACES, rule_nodes, walk
from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.scheduling.rules import resolve_rules


def paths(model):
    return [walked.path for walked in walk(model)]


def test_functional_with_nested_models_that_hold_the_same_names():
    def branch(name):
        x = keras.Input((4,))
        y = layers.Dense(4, name="dense_a")(x)
        return keras.Model(x, y, name=name)

    x = keras.Input((4,))
    model = keras.Model(
        x, layers.Add(name="sum")([branch("left")(x), branch("right")(x)]), name="m"
    )
    assert paths(model) == ["left", "left/dense_a", "right", "right/dense_a", "sum"]


def test_a_sub_model_built_on_its_own_is_below_its_parent():
    encoder = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a")], name="enc")
    encoder(keras.ops.zeros((1, 3)))
    model = keras.Sequential([keras.Input((3,)), encoder], name="m")
    assert paths(model) == ["enc", "enc/a"]


class Holder(keras.Model):
    """A subclassed model with its layers in a list, a dict, a tuple and twice under one name."""

    def __init__(self):
        super().__init__(name="holder")
        self.blocks = [layers.Dense(2, name=f"block{i}") for i in range(2)]
        self.heads = {"x": layers.Dense(1, name="x")}
        self.pair = (layers.Dense(1, name="x"), layers.Dense(1, name="x:2"))
        self.attend = layers.MultiHeadAttention(1, 2, dropout=0.1, name="attend")

    def call(self, x):
        x = self.blocks[1](self.blocks[0](x))
        x = x + self.attend(x, x)
        return self.heads["x"](x) + self.pair[0](x) + self.pair[1](x)


def test_subclassed_before_and_after_build():
    model = Holder()
    before = paths(model)
    assert before == ["block0", "block1", "x", "x:3", "x:2", "attend"]
    model(keras.ops.zeros((1, 3, 2)))
    after = paths(model)
    assert [p for p in after if not p.startswith("attend/")] == before
    assert {"attend/query", "attend/key", "attend/value"} <= set(after)
    assert len(set(after)) == len(after)
    assert [type(w.layer).__name__ for w in walk(model) if w.parent == "attend"].count(
        "Softmax"
    ) == 1


def test_wrappers_and_cells():
    model = keras.Sequential(
        [
            keras.Input((5, 2)),
            layers.Bidirectional(layers.LSTM(2, name="lstm", return_sequences=True), name="bi"),
            layers.RNN([layers.GRUCell(2, name="c0"), layers.GRUCell(2, name="c1")], name="rnn"),
            layers.RepeatVector(3, name="repeat"),
            layers.TimeDistributed(layers.Dense(1, name="fc"), name="td"),
        ]
    )
    found = paths(model)
    assert found[0] == "bi"
    assert {"bi/forward_lstm/lstm_cell", "td/fc"} <= set(found)
    stacked = next(w.path for w in walk(model) if w.class_name == "StackedRNNCells")
    assert {f"{stacked}/c0", f"{stacked}/c1"} <= set(found)


def test_a_shared_layer_is_one_row_in_two_places():
    shared = layers.Dense(2, name="shared")
    left = keras.Sequential([keras.Input((2,)), shared], name="left")
    right = keras.Sequential([keras.Input((2,)), shared], name="right")
    x = keras.Input((2,))
    model = keras.Model(x, layers.Add()([left(x), right(x)]))
    row = next(w for w in walk(model) if w.layer is shared)
    assert row.paths == ("left/shared", "right/shared")
    found = resolve_rules(
        [PrecisionRule(layers="right", policy="float32")], rule_nodes(walk(model))
    )
    assert set(found.hits[0]) == {"right", "right/shared"}


def test_layers_that_hold_each_other_end():
    inner, outer = layers.Dense(1, name="inner"), layers.Dense(1, name="outer")
    inner.other, outer.other = outer, inner
    model = keras.Sequential([inner, layers.Dense(1, name="last")])
    assert paths(model) == ["inner", "inner/outer", "last"]


def test_deeply_shared_sub_models_end():
    class Twice(layers.Layer):
        def __init__(self, a, b, name):
            super().__init__(name=name)
            self.a, self.b = a, b

    below = [layers.Dense(1, name="a"), layers.Dense(1, name="b")]
    for level in range(30):
        below = [Twice(*below, f"a{level}"), Twice(*below, f"b{level}")]
    walked = walk(keras.Sequential(below))
    assert len(walked) == 62
    assert max(len(w.paths) for w in walked) <= MAX_PLACES


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_model_and_one_of_one_layer(count):
    model = keras.Sequential([layers.Dense(1, name="only")][:count])
    assert paths(model) == ["only"][:count]
