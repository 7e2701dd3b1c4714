"""Gradients of low-precision layers in float32, against float64, and what rules make of them."""

import importlib

import keras
import numpy as np
import pytest

import deepseek_hpf as hpf
from deepseek_hpf.adapters.kernels import float32_gradients
from deepseek_hpf.errors import ConfigError

BACKEND = keras.backend.backend()
RNG = np.random.default_rng()
# One rounding to the dtype of the input, and to float32 in sums of a few hundred products.
ULP = {"mixed_float16": 2.0**-11, "mixed_bfloat16": 2.0**-8, "float32": 2.0**-24}
LAYERS = {
    "dense": (keras.layers.Dense, {"units": 5, "activation": "relu"}, (3, 4)),
    "einsum": (
        keras.layers.EinsumDense,
        {"equation": "abc,cde->abde", "output_shape": (2, 2, 3), "bias_axes": "de"},
        (3, 2, 4),
    ),
    "causal": (
        keras.layers.Conv1D,
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (2, 9, 3),
    ),
    "strided": (
        keras.layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "padding": "same", "strides": 2, "activation": "tanh"},
        (2, 7, 6, 3),
    ),
    "grouped": (keras.layers.Conv2D, {"filters": 4, "kernel_size": 3, "groups": 2}, (2, 6, 6, 4)),
    "no bias": (
        keras.layers.Conv3D,
        {"filters": 2, "kernel_size": 2, "use_bias": False},
        (2, 3, 3, 3, 2),
    ),
    "transposed": (
        keras.layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 4, 4, 2),
    ),
    "depthwise": (
        keras.layers.DepthwiseConv2D,
        {"kernel_size": 3, "padding": "same", "depth_multiplier": 2},
        (2, 6, 6, 2),
    ),
    "separable": (keras.layers.SeparableConv1D, {"filters": 3, "kernel_size": 3}, (2, 8, 2)),
}

# The others take more time to compile than a fast test has.
FAST = ("dense", "einsum", "strided")
KINDS = [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in LAYERS]


def created(kind, policy):
    create, arguments, shape = LAYERS[kind]
    layer = create(**arguments, dtype=policy)
    layer.build(shape)
    return layer


def wrapped(layer):
    assert float32_gradients.refuses(layer) is None
    layer.call = float32_gradients.wrap(layer, layer.call)
    return layer


def differentiated(layer, x, upstream=None, jit_compile=False):
    """The result, then the gradients of the input and of the weights, as they come."""
    run = importlib.import_module(f"layer_gradients_{BACKEND}").outputs_and_gradients
    return run(layer, np.asarray(x), upstream, jit_compile)


def as_float64(values):
    return [np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in values]


def dtypes(values):
    return [keras.backend.standardize_dtype(v.dtype) for v in values]


def rounded(x, dtype):
    return keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.cast(x, dtype), "float32"))


def error(found, exact):
    return float(np.sqrt(np.mean((found - exact) ** 2) / np.mean(exact**2)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_layers_own_and_gradients_those_of_float64(kind, policy):
    own, ours, exact = created(kind, policy), created(kind, policy), created(kind, "float32")
    dtype = own.compute_dtype
    weights = [0.3 * RNG.standard_normal(w.shape).astype("float32") for w in own.get_weights()]
    # The reference differentiates where the forward pass was: at weights of 16 bits.
    for layer, values in (
        (own, weights),
        (ours, weights),
        (exact, [rounded(w, dtype) for w in weights]),
    ):
        layer.set_weights(values)
        layer.activation = None
    x = RNG.standard_normal(LAYERS[kind][2]).astype("float32")
    y = own.compute_output_shape(x.shape)
    upstream = rounded(RNG.standard_normal(y).astype("float32"), dtype)
    found = differentiated(wrapped(ours), x, upstream)
    theirs = as_float64(differentiated(own, x, upstream))
    truth = as_float64(differentiated(exact, rounded(x, dtype), upstream))
    assert dtypes(found) == [dtype, dtype] + ["float32"] * len(weights)
    output, of_input, *of_weights = as_float64(found)
    assert output.tobytes() == theirs[0].tobytes()
    assert error(of_input, truth[1]) < ULP[policy]
    for ours_, theirs_, truth_ in zip(of_weights, theirs[2:], truth[2:], strict=True):
        # The reference is float32 too: some sums in another order are all that differs.
        assert error(ours_, truth_) < 8 * ULP["float32"]
        assert error(ours_, truth_) < 0.1 * error(theirs_, truth_) or error(theirs_, truth_) == 0


def test_gradients_that_float16_cannot_hold_reach_the_weight():
    layer = wrapped(created("dense", "mixed_float16"))
    layer.activation = None
    x = np.full((3, 4), 1e-3, "float32")
    upstream = np.full((3, 5), 6e-8, "float32")  # the smallest subnormal number of float16
    of_weight = as_float64(differentiated(layer, x, upstream))[2]
    exact = 3 * float(np.float16(1e-3)) * float(np.float16(6e-8))
    np.testing.assert_allclose(of_weight, exact, rtol=1e-6)
    assert np.float16(exact) == 0.0


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_seen(bad):
    layer = wrapped(created("dense", "mixed_bfloat16"))
    layer.activation = None
    x = RNG.standard_normal((3, 4)).astype("float32")
    x[1, 2] = bad
    y, _, of_weight, _ = as_float64(differentiated(layer, x))
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()
    assert not np.isfinite(of_weight[2]).any()
    assert np.isfinite(of_weight[[0, 1, 3]]).all()


@pytest.mark.parametrize("samples", [0, 1])
def test_few_samples(samples):
    found = differentiated(
        wrapped(created("dense", "mixed_bfloat16")), np.ones((samples, 4)), None, True
    )
    assert [tuple(value.shape) for value in found] == [(samples, 5), (samples, 4), (4, 5), (5,)]
    assert dtypes(found) == ["bfloat16", "bfloat16", "float32", "float32"]


def small_model():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 3, activation="relu", name="conv"),
            keras.layers.Flatten(name="flat"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(4, activation="relu", name="hidden"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile("sgd", "mse")
    return model


def policy_of(*rules, policy="mixed_bfloat16"):
    config = hpf.PrecisionConfig(policy=policy, rules=rules)
    return hpf.MixedPrecisionPolicy(config=config)


def test_a_rule_brings_it_and_the_report_says_so_and_takes_it_back(tmp_path):
    model = small_model()
    x, y = RNG.standard_normal((8, 6, 6, 2)), RNG.standard_normal((8, 1))
    before = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match=r"rules\[0\] asks for gradients in float32.*norm"):
        report = hpf.apply_policy(model, policy_of({"layers": "*", "backward": "float32"}))
    assert [row.path for row in report.rows if row.backward == "float32"] == ["conv", "hidden"]
    assert "LayerNormalization" in report.row("norm").backward_refusal
    assert report.plan["hidden"].backward == "float32"
    assert any("float32 gradients: in conv, hidden" in line for line in report.kernels)
    history = model.fit(x, y, epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    model.save(tmp_path / "model.keras")
    assert b"float32_gradients" not in (tmp_path / "model.keras").read_bytes()
    report.revert()
    for layer in model.layers:
        assert "call" not in vars(layer)
    assert model.predict(x, verbose=0).shape == before.shape


def test_a_rule_that_hits_nothing_that_can_is_refused_and_the_model_left():
    model = small_model()
    with pytest.raises(ConfigError, match=r"norm .there is no such kernel for LayerNormalization"):
        hpf.apply_policy(
            model,
            policy_of({"layers": "norm", "policy": "mixed_bfloat16", "backward": "float32"}),
        )
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert not any("call" in vars(layer) for layer in model.layers)


def test_in_float32_there_is_nothing_to_do():
    model = small_model()
    rule = {"layer_type": "Dense", "backward": "float32"}
    report = hpf.apply_policy(model, policy_of(rule, policy="float32"))
    assert any("nothing to do" in line and "hidden" in line for line in report.kernels)
    assert report.row("hidden").backward is None
