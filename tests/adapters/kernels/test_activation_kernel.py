import keras
import numpy as np
import pytest
from against_float64 import assert_as_exact, three_ways

from deepseek_hpf.adapters.kernels import activation_tensorflow as kernel

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()
LARGE = (2, 16, kernel.SMALL // 16)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_errors_are_the_dtypes_own(policy, name):
    x = 3.0 * RNG.standard_normal(LARGE)
    ways = three_ways(
        lambda dtype: keras.layers.Activation(name, dtype=dtype), kernel.wrap, x, policy
    )
    assert_as_exact(ways, slack=1.05, least=1e-6)


def test_a_dense_layer_keeps_all_but_its_activation():
    x = RNG.standard_normal((2, 64, 8))
    ways = three_ways(
        lambda dtype: keras.layers.Dense(256, activation="gelu", dtype=dtype),
        kernel.wrap,
        x,
        "mixed_bfloat16",
    )
    assert_as_exact(ways, slack=1.3, least=1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_that_are_not_finite_are_as_keras_has_them(name, dtype):
    x = keras.ops.cast([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30], dtype)
    ours, theirs = (
        keras.ops.convert_to_numpy(function(x)).astype("float32")
        for function in (getattr(kernel, name), getattr(keras.activations, name))
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (), (2, 1, 1)])
def test_any_shape(shape):
    assert kernel.gelu(keras.ops.zeros(shape)).shape == shape


def test_small_ones_run_keras_code():
    layer = keras.layers.Activation("silu")
    inner = kernel.wrap(layer, lambda x: layer.activation(x))
    assert keras.ops.convert_to_numpy(inner(keras.ops.ones((4, 3)))) == pytest.approx(0.7310586)
    assert layer.activation is keras.activations.silu


def test_the_activation_is_back_after_an_error():
    layer = keras.layers.Dense(4, activation="gelu")
    layer.build((None, 3))
    layer.call = kernel.wrap(layer, layer.call)
    with pytest.raises(Exception, match=r"(?i)shape|dimension|matri"):
        layer.call(keras.ops.ones((2, 5)))
    assert layer.activation is keras.activations.gelu


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (keras.layers.Activation("relu"), "neither"),
        (keras.layers.Dense(2, activation="gelu", dtype="mixed_float16"), "float16"),
    ],
)
def test_refused(layer, words):
    assert words in kernel.refuses(layer)


def test_quantized_layers_are_refused():
    layer = keras.layers.Dense(4, activation="gelu")
    layer.build((None, 4))
    assert kernel.refuses(layer) is None
    layer.quantize("int8")
    assert "quantized" in kernel.refuses(layer)
