"""Softmax and outputs in float32, seen in what the back end really runs."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from traced_dtypes import exponentials

import deepseek_hpf.adapters.critical as critical_module
from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config import PrecisionConfig


def dtype_of(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def sequence(*shape):
    return np.random.default_rng().normal(size=shape).astype("float32")


def attention(kind, **settings):
    x = keras.Input((6, 8))
    if kind is layers.Attention:
        y = layers.Attention(name="attend", **settings)([x, x])
    elif kind is layers.GroupQueryAttention:
        y = layers.GroupQueryAttention(4, 2, 1, name="attend", **settings)(x, x)
    else:
        y = layers.MultiHeadAttention(2, 4, name="attend", **settings)(x, x)
    return keras.Model(x, layers.Dense(1, name="head")(y))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (layers.MultiHeadAttention, {"dropout": 0.1}),
        (layers.MultiHeadAttention, {}),
        (layers.GroupQueryAttention, {"dropout": 0.1}),
        (layers.Attention, {}),
    ],
    ids=["dropout", "fused", "grouped", "plain"],
)
def test_softmax_inside_attention_runs_in_float32(kind, settings):
    model = attention(kind, **settings)
    x = sequence(2, 6, 8)
    report = apply_policy(model, "mixed_bfloat16")
    assert exponentials(model, x) <= {"float32", "fused"}
    report.revert()
    low = PrecisionConfig.from_dict(
        {"policy": "mixed_bfloat16", "rules": [{"layers": "attend", "policy": "mixed_bfloat16"}]}
    )
    with pytest.warns(UserWarning, match="critical layers in low precision: attend"):
        apply_policy(model, low)
    unfused = settings or kind is layers.Attention
    assert ("bfloat16" in exponentials(model, x)) == bool(unfused)


def test_the_products_around_the_softmax_stay_low():
    model = attention(layers.MultiHeadAttention, dropout=0.0)
    report = apply_policy(model, "mixed_bfloat16")
    softmax = next(r for r in report.rows if r.class_name == "Softmax")
    assert (softmax.after, softmax.result_dtype) == ("float32", "bfloat16")
    assert not softmax.saved
    layer = next(w.layer for w in walk(model) if w.path == softmax.path)
    assert dtype_of(layer(sequence(1, 2, 3, 3))) == "bfloat16"


def test_a_fused_softmax_is_as_good_as_float32():
    # A low-precision softmax over this many keys would lose most of the sum.
    model = keras.Sequential([keras.Input((2000, 1, 8)), _Fused()])
    x = np.zeros((1, 2000, 1, 8), "float32")
    x[..., 0] = np.arange(2000)[None, :, None] / 2000
    apply_policy(model, "mixed_bfloat16")
    found = ops.convert_to_numpy(model(x))[0, 0, 0, 0]
    scores = x[0, 0, 0] @ x[0, :, 0].astype("float64").T
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(found, weights @ x[0, :, 0, 0], rtol=2**-7)


class _Fused(layers.Layer):
    def call(self, x):
        return ops.dot_product_attention(x, x, x, scale=1.0)


def functional(make):
    x = keras.Input((4,))
    return keras.Model(x, make(layers.Dense(4, name="body")(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = layers.Dense(4)

    def call(self, x):
        y = self.body(x)
        return {"a": y, "b": (ops.softmax(y), ops.argmax(y, axis=-1))}


def nested(x):
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="fc")], name="inner")
    return keras.Sequential([keras.Input((4,)), inner], name="outer")(x)


def shared_output(x):
    shared = layers.Dense(4, name="shared")
    return [shared(x), shared(layers.ReLU()(shared(x)))]


OUTPUTS = {
    "dense": lambda x: layers.Dense(3)(x),
    "softmax": lambda x: layers.Dense(3, activation="softmax")(x),
    "softmax_layer": lambda x: layers.Softmax()(layers.Dense(3)(x)),
    "activation": lambda x: layers.Activation("softmax")(layers.Dense(3)(x)),
    "add": lambda x: layers.Add()([x, layers.Dense(4)(x)]),
    "add_operation": lambda x: x + layers.Dense(4)(x),
    "softmax_operation": lambda x: ops.softmax(layers.Dense(3)(x)),
    "matmul_operation": lambda x: ops.matmul(x, ops.transpose(x)),
    "nested": nested,
    "several": lambda x: {"a": layers.Dense(1)(x), "b": [x, layers.Reshape((2, 2))(x)]},
    "shared": shared_output,
    "inside_too": lambda x: [x, layers.Dense(2)(layers.ReLU()(x))],
    "lambda": lambda x: layers.Lambda(lambda y: ops.cast(y, "float16"))(x),
    "time": lambda x: layers.TimeDistributed(layers.Dense(2))(layers.Reshape((2, 2))(x)),
    "recurrent": lambda x: layers.LSTM(2)(layers.Reshape((2, 2))(x)),
    "two_ways": lambda x: layers.Bidirectional(layers.GRU(2))(layers.Reshape((2, 2))(x)),
    "group": lambda x: layers.GroupNormalization(2)(x),
    "attention": lambda x: layers.MultiHeadAttention(1, 2)(*[layers.Reshape((2, 2))(x)] * 2),
    "identity": lambda x: layers.Identity()(x),
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_outputs_are_float32(make):
    model = functional(make)
    x = sequence(2, 4)
    before = keras.tree.map_structure(ops.convert_to_numpy, model(x))
    report = apply_policy(model, "mixed_bfloat16")
    after = model(x)
    for y, reference in zip(keras.tree.flatten(after), keras.tree.flatten(before), strict=True):
        assert dtype_of(y) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(y), reference, atol=0.15, rtol=0.05)
    body = model.get_layer("body")
    assert body.compute_dtype == ("float32" if _is_output(model, body) else "bfloat16")
    assert exponentials(model, x) <= {"float32", "fused"} or make is OUTPUTS["recurrent"]
    report.revert()
    for y, reference in zip(keras.tree.flatten(model(x)), keras.tree.flatten(before), strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(y), reference)


def _is_output(model, layer):
    return any(t._keras_history[0] is layer for t in keras.tree.flatten(model.outputs))


def test_a_subclassed_model_returns_float32_and_leaves_other_dtypes():
    model = Subclassed()
    apply_policy(model, "mixed_float16")
    for _ in range(2):  # unbuilt, then built
        found = model(sequence(2, 4))
        assert dtype_of(found["a"]) == dtype_of(found["b"][0]) == "float32"
        assert "int" in dtype_of(found["b"][1])
        assert model.body.compute_dtype == "float16"


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_large_head_stays_low_and_its_activation_does_not(monkeypatch, activation):
    monkeypatch.setattr(critical_module, "LARGE_HEAD_ELEMENTS", 11)
    model = functional(lambda x: layers.Dense(3, activation=activation, name="head")(x))
    x = sequence(2, 4)
    reference = ops.convert_to_numpy(model(x))
    config = model.get_config()
    report = apply_policy(model, "mixed_bfloat16")
    row = report.row("head")
    assert (row.after, row.result_dtype) == ("mixed_bfloat16", "float32")
    assert "its result cast" in row.reason
    y = model(x)
    assert dtype_of(y) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(y), reference, atol=0.1)
    if activation:
        assert exponentials(model, x) == {"float32"}
        np.testing.assert_allclose(ops.convert_to_numpy(y).sum(-1), 1, rtol=1e-6)
    assert model.get_layer("head").activation is keras.activations.get(activation)
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((2, 3)), verbose=0)
    report.revert()
    assert model.get_config() == config


def test_a_rule_takes_an_output_out_of_float32():
    model = functional(
        lambda x: [layers.Dense(3, name="head")(x), layers.Dense(1, name="other")(x)]
    )
    rules = [{"layers": "head", "policy": "mixed_bfloat16"}]
    with pytest.warns(UserWarning, match=r"low precision: head \(rules\[0\]\)"):
        apply_policy(model, PrecisionConfig.from_dict({"policy": "mixed_bfloat16", "rules": rules}))
    assert [dtype_of(y) for y in model(sequence(2, 4))] == ["bfloat16", "float32"]


def test_pure_low_precision_variables_cannot_be_helped_but_the_result_can(global_dtype_policy):
    keras.config.set_dtype_policy("bfloat16")
    model = functional(lambda x: layers.Dense(3, activation="softmax", name="head")(x))
    report = apply_policy(model, "bfloat16")
    assert report.row("head").after == "bfloat16"
    assert dtype_of(model(sequence(2, 4))) == "float32"
    assert exponentials(model, sequence(2, 4)) == {"float32"}


def test_a_wide_policy_needs_no_care():
    model = functional(lambda x: layers.Softmax()(x))
    report = apply_policy(model, "float64")
    assert "float32" not in {row.after for row in report.rows if row.class_name == "Softmax"}
    assert not report.operations
