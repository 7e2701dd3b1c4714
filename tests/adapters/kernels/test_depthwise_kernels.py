import keras
import numpy as np
import pytest
from against_float64 import assert_as_exact, three_ways

from deepseek_hpf.adapters.kernels import depthwise_tensorflow, grouped_convolution_tensorflow

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


def depthwise(**arguments):
    return lambda policy: keras.layers.DepthwiseConv2D(dtype=policy, **arguments)


def grouped(channels, multiplier=1, **arguments):
    return lambda policy: keras.layers.Conv2D(
        channels * multiplier, groups=channels, dtype=policy, **arguments
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 3, "strides": 2, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "valid", "use_bias": False},
        # Not a ReLU: one value that rounding takes across 0 outweighs all other errors.
        {"kernel_size": 5, "padding": "same", "depth_multiplier": 2, "activation": "tanh"},
        {"kernel_size": (5, 3), "strides": 3, "padding": "valid"},
    ],
)
def test_depthwise_errors_are_bfloat16s_own(arguments):
    x = RNG.standard_normal((2, 9, 8, 5))
    ways = three_ways(depthwise(**arguments), depthwise_tensorflow.wrap, x, "mixed_bfloat16")
    assert_as_exact(ways, slack=1.2, least=4e-3)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(("strides", "padding"), [(1, "same"), (2, "valid")])
def test_grouped_convolutions_are_depthwise(policy, multiplier, strides, padding):
    make = grouped(4, multiplier, kernel_size=7, strides=strides, padding=padding)
    x = RNG.standard_normal((2, 9, 10, 4))
    ways = three_ways(make, grouped_convolution_tensorflow.wrap, x, policy)
    assert_as_exact(ways, slack=1.2, least=4e-3 if policy == "mixed_bfloat16" else 2e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (depthwise(kernel_size=3), "fast in bfloat16"),
        (depthwise(kernel_size=5, dilation_rate=2), "dilated"),
        (depthwise(kernel_size=5, data_format="channels_first"), "channels_first"),
    ],
)
def test_refused_depthwise_convolutions(make, words):
    assert words in depthwise_tensorflow.refuses(make("mixed_bfloat16"))


def test_float32_depthwise_convolutions_are_refused():
    assert "float32" in depthwise_tensorflow.refuses(depthwise(kernel_size=5)("float32"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"filters": 8}, "one group"),
        ({"filters": 8, "groups": 2}, "several channels"),
        ({"filters": 4, "groups": 4, "dilation_rate": 2}, "dilated"),
    ],
)
def test_refused_grouped_convolutions(arguments, words):
    layer = keras.layers.Conv2D(kernel_size=3, **arguments)
    layer.build((None, 8, 8, 4))
    assert words in grouped_convolution_tensorflow.refuses(layer)


def test_lora_is_refused():
    layer = keras.layers.Conv2D(4, 3, groups=4)
    layer.build((None, 8, 8, 4))
    assert grouped_convolution_tensorflow.refuses(layer) is None
    layer.enable_lora(1)
    assert "LoRA" in grouped_convolution_tensorflow.refuses(layer)


def test_not_finite_values_stay():
    make = grouped(2, kernel_size=3, strides=2, padding="valid")
    x = np.ones((3, 5, 5, 2), "float32")
    x[0, 0, 0, 0], x[1, 0, 0, 1] = np.inf, np.nan
    layer = make("mixed_bfloat16")
    layer.build(x.shape)
    layer.call = grouped_convolution_tensorflow.wrap(layer, layer.call)
    finite = np.isfinite(keras.ops.convert_to_numpy(layer(x)).astype("float32"))
    assert not finite[0, 0, 0, 0]
    assert not finite[1, 0, 0, 1]
    assert finite[2].all()


def test_empty_batch():
    layer = grouped(2, kernel_size=3)("float32")
    layer.build((None, 5, 5, 2))
    layer.call = grouped_convolution_tensorflow.wrap(layer, layer.call)
    assert layer(np.zeros((0, 5, 5, 2), "float32")).shape == (0, 3, 3, 2)
