"""Max pooling that keeps places gives the gradients of TensorFlow's own."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from deepseek_hpf.storage.max_pool_tensorflow import wrap  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")

RNG = np.random.default_rng()
SLOW = pytest.mark.slow
KINDS = {
    "2 x 2": (keras.layers.MaxPooling2D, {}, (2, 8, 9, 5)),
    "overlapping": (
        keras.layers.MaxPooling2D,
        {"pool_size": 3, "strides": 2, "padding": "same"},
        (2, 9, 8, 5),
    ),
    "gaps": (keras.layers.MaxPooling2D, {"pool_size": 2, "strides": 3}, (2, 9, 10, 3)),
    "1D": (keras.layers.MaxPooling1D, {"pool_size": 5, "padding": "same"}, (2, 13, 3)),
    "3D": (keras.layers.MaxPooling3D, {"pool_size": (1, 2, 3)}, (2, 4, 5, 6, 3)),
    "channels first": (keras.layers.MaxPooling2D, {"data_format": "channels_first"}, (2, 3, 6, 7)),
}


def gradient(layer, x, upstream, jit_compile=False):
    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return y, tape.gradient(y, x, upstream)

    return [tf.cast(value, tf.float64).numpy() for value in run(x, upstream)]


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=SLOW)])
@pytest.mark.parametrize(
    "kind", ["2 x 2", "overlapping", *(pytest.param(k, marks=SLOW) for k in list(KINDS)[2:])]
)
def test_gradients_are_tensorflows(kind, dtype, jit_compile):
    create, arguments, shape = KINDS[kind]
    layer = create(**arguments, dtype=dtype)
    # Of few values, so that many are equal.
    x = tf.cast(RNG.integers(-3, 3, shape), dtype)
    upstream = tf.cast(RNG.standard_normal(layer(x).shape), dtype)
    # Of equal values in windows that overlap, XLA itself may take another than TensorFlow does.
    expected = gradient(layer, x, upstream, jit_compile and kind != "overlapping")
    layer.call = wrap(layer, layer.call, is_exact=False)
    found = gradient(layer, x, upstream, jit_compile)
    assert np.array_equal(found[0], expected[0])
    # Where windows overlap, gradients are added up: four at most, of 16 bits by TensorFlow.
    rounding = 2.0**-8 if dtype == "bfloat16" else 2.0**-23
    tolerance = 4 * 4 * rounding * np.abs(tf.cast(upstream, tf.float32)).max()
    atol = tolerance if kind in ("overlapping",) else 0
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=atol)


def test_the_exact_form_leaves_sums_alone():
    layer = keras.layers.MaxPooling2D(3, 2, dtype="bfloat16")
    layer.call = wrap(layer, layer.call, is_exact=True)

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x)

    x = tf.zeros((2, 8, 8, 3), tf.bfloat16)
    graph = tf.function(run, autograph=False).get_concrete_function(x).graph
    assert "MaxPoolGrad" in [op.type for op in graph.get_operations()]


def test_nan_has_its_gradient_where_it_is():
    layer = keras.layers.MaxPooling1D(2)
    layer.call = wrap(layer, layer.call, is_exact=False)
    x = tf.constant([[[1.0], [2.0], [np.nan], [np.nan]]])
    y, found = gradient(layer, x, tf.ones((1, 2, 1)))
    assert found[0, :, 0].tolist() == [0, 1, 1, 0] or not np.isnan(y[0, 1, 0])
