import keras
import numpy as np
import pytest
import tensorflow as tf
from against_float64 import assert_as_exact, three_ways

from deepseek_hpf.adapters.kernels import narrow_convolution_tensorflow as narrow

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


def convolution(**arguments):
    return lambda policy: keras.layers.Conv2D(dtype=policy, **arguments)


def built(shape=(None, 6, 6, 4), policy="mixed_bfloat16", **arguments):
    layer = convolution(**{"filters": 5, "kernel_size": 3, **arguments})(policy)
    layer.build(shape)
    return layer


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "use_bias": False, "activation": "tanh", "padding": "same"},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "use_bias": False},
        {"kernel_size": (2, 5), "padding": "same", "activation": "tanh"},
        {"kernel_size": (4, 1), "padding": "valid"},
    ],
)
@pytest.mark.parametrize("shape", [(3, 5, 8, 6), (1, 5, 5, 1)])
def test_errors_are_bfloat16s_own(arguments, shape):
    x = RNG.standard_normal(shape)
    ways = three_ways(convolution(filters=7, **arguments), narrow.wrap, x, "mixed_bfloat16")
    assert_as_exact(ways, slack=1.2, least=4e-3)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (5, 4)])
def test_float64_gradients_are_those_of_the_convolution(size, padding):
    x = tf.constant(RNG.standard_normal((2, 6, 7, 3)))
    kernel = tf.constant(RNG.standard_normal((*size, 3, 4)))
    upstream = None
    found = []
    for convolve in (
        lambda x, k: narrow.narrow_convolution(x, k, padding),
        lambda x, k: tf.nn.conv2d(x, k, 1, padding),
    ):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            y = convolve(x, kernel)
        if upstream is None:
            upstream = tf.constant(RNG.standard_normal(y.shape))
        found.append([y, *tape.gradient(y, [x, kernel], output_gradients=upstream)])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_what_is_not_finite_reaches_result_and_gradients(value, kernel_size):
    layer = built(kernel_size=kernel_size, padding="same")
    layer.call = narrow.wrap(layer, layer.call)
    x = RNG.standard_normal((2, 6, 6, 4)).astype("float32")
    x[0, 2, 3, 1] = value
    with tf.GradientTape() as tape:
        y = layer(x)
    assert not np.isfinite(tf.cast(y, "float32")).all()
    assert not np.isfinite(tape.gradient(y, layer.kernel.value)).all()


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_an_empty_batch_and_an_unknown_one(kernel_size):
    layer, own = built(kernel_size=kernel_size), built(kernel_size=kernel_size)
    own.set_weights(layer.get_weights())
    layer.call = narrow.wrap(layer, layer.call)
    signature = [tf.TensorSpec((None, 6, 6, 4), "bfloat16")]
    run, run_own = (tf.function(one, input_signature=signature) for one in (layer, own))
    assert run(tf.zeros((0, 6, 6, 4), "bfloat16")).shape[0] == 0
    for size in (1, 3):
        x = tf.cast(RNG.standard_normal((size, 6, 6, 4)), "bfloat16")
        ours, theirs = (tf.cast(one(x), "float32").numpy() for one in (run, run_own))
        np.testing.assert_allclose(ours, theirs, rtol=0.02, atol=0.02)


def test_wide_images_are_left_to_keras():
    layer = built(kernel_size=1)
    calls = []
    wrapped = narrow.wrap(layer, lambda x: calls.append(x.shape) or x)
    wrapped(tf.zeros((1, 6, narrow.NARROW + 1, 4), "bfloat16"))
    wrapped(tf.zeros((1, 6, narrow.NARROW, 4), "float32"))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "is_for_it"),
    [
        ({}, True),
        ({"shape": (None, 20, narrow.NARROW, 4)}, True),
        ({"shape": (None, 6, narrow.NARROW + 1, 4)}, False),
        ({"shape": (None, None, None, 4)}, False),
        ({"strides": 2}, False),
        ({"groups": 2, "filters": 4}, False),
        ({"policy": "float32"}, False),
        ({"activation": "gelu"}, False),
    ],
)
def test_which_convolutions_it_is_for(arguments, is_for_it):
    assert narrow.applies(built(**arguments)) is is_for_it


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dilation_rate": 2}, "dilated"),
        ({"data_format": "channels_first", "shape": (None, 4, 6, 6)}, "channels_first"),
    ],
)
def test_refused_convolutions(arguments, words):
    assert words in narrow.refuses(built(**arguments))


def test_apply_policy_brings_it_and_takes_it_back():
    import deepseek_hpf as hpf

    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(4, 3, strides=2, padding="same", name="wide"),
            keras.layers.Conv2D(4, 3, padding="same", name="narrow"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    report = hpf.apply_policy(model, "mixed_bfloat16")
    assert report.row("narrow").kernel == "narrow convolution"
    assert report.row("wide").kernel is None
    report.revert()
    assert "call" not in vars(model.get_layer("narrow"))
