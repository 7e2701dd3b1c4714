"""The fused batch normalization against Keras's own and against float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from deepseek_hpf.adapters.kernels import batch_normalization_tensorflow as kernel

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()
DRAWS = 20
POLICIES = ["float32", "mixed_bfloat16", "mixed_float16", "bfloat16"]
# Shape and axis; the last dimension, or the one after the batch, is that of the channels.
LAYOUTS = [
    ((24, 6), -1),
    ((24, 6), 1),
    ((3, 5, 6), -1),
    ((3, 6, 5), 1),
    ((4, 6, 9, 5), -1),
    ((4, 6, 9, 5), 3),
    ((4, 5, 6, 9), 1),
    ((4, 5, 6, 9), -3),
    ((2, 3, 4, 5, 6), -1),
    ((2, 6, 3, 4, 5), 1),
]


def pair(policy, shape, axis=-1, **settings):
    """A layer without the kernel and one with it, of the same weights, not the initial ones."""
    layers = [keras.layers.BatchNormalization(axis=axis, dtype=policy, **settings) for _ in "ab"]
    for layer in layers:
        layer.build((None, *shape[1:]))
    set_weights(layers)
    own, fused = layers
    assert kernel.refuses(fused) is None
    fused.call = kernel.wrap(fused, fused.call)
    return own, fused


def set_weights(layers):
    weights = [RNG.uniform(0.5, 2.0, w.shape) for w in layers[0].weights]
    for layer in layers:
        layer.set_weights(weights)


def stepper(layer, training=True, jit_compile=False):
    """Returns a function that gives the result and the gradients of input and weights."""

    @tf.function(jit_compile=jit_compile)
    def step(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
        wanted = [x, *(v.value for v in layer.trainable_variables)]
        return [y, *tape.gradient(y, wanted, output_gradients=tf.cast(upstream, y.dtype))]

    return step


def draw(shape, dtype, axis=-1, centre=3.0):
    """Channels of unlike deviations, their means `centre` deviations away from 0, or so."""
    channels = [1] * len(shape)
    channels[axis] = shape[axis]
    spread = 10.0 ** RNG.uniform(-1.0, 1.0, channels)
    x = spread * (RNG.standard_normal(shape) + centre * RNG.standard_normal(channels))
    return tf.cast(x, dtype), tf.cast(RNG.standard_normal(shape), dtype)


def exact(layer, x, upstream):
    """Result and gradients in training, in float64."""
    x, upstream = as_float64(x), as_float64(upstream)
    axis = layer.axis % x.ndim
    others = tuple(i for i in range(x.ndim) if i != axis)
    wide = [1 if i in others else -1 for i in range(x.ndim)]
    gamma, beta, *_ = (as_float64(w).reshape(wide) for w in layer.weights)
    mean, variance = x.mean(others, keepdims=True), x.var(others, keepdims=True)
    scale = 1.0 / np.sqrt(variance + layer.epsilon)
    normal = (x - mean) * scale
    along = (upstream * normal).sum(others, keepdims=True)
    total = upstream.sum(others, keepdims=True)
    count = x.size // x.shape[axis]
    dx = gamma * scale * (upstream - total / count - normal * along / count)
    return normal * gamma + beta, dx, along.ravel(), total.ravel()


def as_float64(x):
    return np.asarray(tf.cast(x, tf.float64))


def largest_and_root_mean_square(found, truth):
    error = as_float64(found) - truth
    return np.abs(error).max(), np.sqrt(np.mean(error**2))


def assert_close(found, wanted, dtype="float32"):
    """Up to the rounding of a dtype, or of sums in float32."""
    size = max(1.0, np.abs(as_float64(wanted)).max(initial=0.0))
    unit = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}[dtype]
    np.testing.assert_allclose(as_float64(found), as_float64(wanted), rtol=unit, atol=unit * size)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((16, 12, 12, 32), -1), ((256, 32), -1), ((8, 32, 12, 12), 1), ((4, 20, 8), -1)],
)
@pytest.mark.parametrize("centre", [0.0, 3.0, 100.0])
def test_errors_against_float64_are_no_larger_than_kerass(policy, shape, axis, centre):
    layers = pair(policy, shape, axis)
    steps = [stepper(layer) for layer in layers]
    largest = np.zeros((2, 2))  # whose, of what
    squares = np.zeros((2, 2))
    of_parameters = np.zeros((2, 2))
    for _ in range(DRAWS):
        set_weights(layers)
        x, upstream = draw(shape, layers[0].compute_dtype, axis, centre)
        truths = exact(layers[0], x, upstream)
        for whose, step in enumerate(steps):
            found = step(x, upstream)
            for what in (0, 1):
                most, usual = largest_and_root_mean_square(found[what], truths[what])
                largest[whose, what] = max(largest[whose, what], most)
                squares[whose, what] += usual**2 / DRAWS
            for which, (gradient, truth) in enumerate(zip(found[2:], truths[2:], strict=True)):
                usual = largest_and_root_mean_square(gradient, truth)[1] / np.abs(truth).max()
                of_parameters[whose, which] += usual / DRAWS
    # float32 sums: a scale's gradient adds up numbers that the mean, far off, has made inexact.
    assert (of_parameters[1] <= np.maximum(1.05 * of_parameters[0], 1e-5)).all()
    own, fused = np.sqrt(squares)
    assert largest[1, 0] <= 1.05 * largest[0, 0]
    assert fused[0] <= 1.05 * own[0]
    # The gradient of the input in float32: about Keras's, and up to 1.2 times in a small batch.
    assert fused[1] <= (1.3 if policy == "float32" else 1.05) * own[1]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("shape", "axis"), LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
def test_as_keras(policy, shape, axis, training):
    own, fused = pair(policy, shape, axis)
    x, upstream = draw(shape, own.compute_dtype, axis)
    wanted, found = (stepper(layer, training)(x, upstream) for layer in (own, fused))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert_close(ours, theirs, own.compute_dtype)
    for ours, theirs in zip(fused.weights, own.weights, strict=True):
        assert_close(ours, theirs, own.variable_dtype)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 3, 5), -1), ((2, 5, 3, 3), 1), ((12, 5), -1)])
def test_moving_statistics_within_the_rounding_of_float32(policy, shape, axis):
    own, fused = pair(policy, shape, axis, momentum=0.5)
    for _ in range(5):
        x, _ = draw(shape, own.compute_dtype, axis)
        for layer in (own, fused):
            layer(x, training=True)
    for ours, theirs in zip(fused.weights, own.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (1, 4), (0, 3, 3, 4), (0, 4), (1, 3, 3, 4)])
def test_single_values_and_empty_batches(policy, shape):
    own, fused = pair(policy, shape)
    x, upstream = draw(shape, own.compute_dtype)
    wanted, found = (stepper(layer)(x, upstream) for layer in (own, fused))
    if 0 not in shape:
        wanted = exact(own, x, upstream)  # where nothing but the offset is left, Keras's is less so
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, own.compute_dtype)
    for ours, theirs in zip(fused.weights, own.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"center": False}, {"scale": False}, {"epsilon": 1e-7}])
def test_without_offset_or_scale(settings):
    own, fused = pair("mixed_bfloat16", (4, 5, 5, 3), **settings)
    x, upstream = draw((4, 5, 5, 3), "bfloat16")
    wanted, found = (stepper(layer)(x, upstream) for layer in (own, fused))
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, "bfloat16")


def test_frozen_layers_keep_their_statistics():
    own, fused = pair("float32", (4, 5, 5, 3))
    own.trainable = fused.trainable = False
    before = fused.get_weights()
    x, _ = draw((4, 5, 5, 3), "float32")
    assert_close(fused(x, training=True), own(x, training=True))
    for then, now in zip(before, fused.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_a_mask_at_call_time_falls_back():
    own, fused = pair("float32", (4, 5, 3))
    x, _ = draw((4, 5, 3), "float32")
    mask = tf.constant(RNG.random((4, 5)) > 0.5)
    arguments = {"training": True, "mask": mask}
    np.testing.assert_array_equal(fused(x, **arguments), own(x, **arguments))
    for ours, theirs in zip(fused.weights, own.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_under_xla_large_means_are_safe(policy):
    own, fused = pair(policy, (8, 4, 4, 6))
    x = tf.cast(1000.0 + RNG.standard_normal((8, 4, 4, 6)), own.compute_dtype)
    wanted, found = (stepper(layer, jit_compile=True)(x, x) for layer in (own, fused))
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(as_float64(ours), as_float64(theirs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_second_derivatives_and_persistent_tapes(policy, training):
    own, fused = pair(policy, (3, 4, 4, 2))
    x, _ = draw((3, 4, 4, 2), own.compute_dtype)
    found = []
    for layer in (own, fused):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(x)
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                y = tf.cast(layer(x, training=training), tf.float32)
                cubes = tf.reduce_sum(y**3)
            first = inner.gradient(cubes, x)
            squares = tf.reduce_sum(tf.cast(first, tf.float32) ** 2)
        found.append([first, inner.gradient(y, x), outer.gradient(squares, x)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert_close(ours, theirs, own.compute_dtype)


def test_unknown_sizes():
    own, fused = pair("mixed_bfloat16", (2, None, None, 3))
    layers = {"own": own, "fused": fused}
    signature = tf.TensorSpec([None, None, None, 3], tf.bfloat16)
    call = {
        name: tf.function(lambda x, layer=layer: layer(x, training=True), [signature])
        for name, layer in layers.items()
    }
    for shape in ((2, 5, 7, 3), (1, 1, 1, 3)):
        x, _ = draw(shape, "bfloat16")
        assert_close(call["fused"](x), call["own"](x), "bfloat16")
        assert call["fused"].get_concrete_function().output_shapes == [None, None, None, 3]


def test_a_relu_behind_it_becomes_part_of_it():
    from tensorflow.python.eager import context

    for policy in ("float32", "mixed_bfloat16"):
        _, fused = pair(policy, (4, 5, 5, 3))
        x, upstream = draw((4, 5, 5, 3), fused.compute_dtype)

        @tf.function
        def step(x, upstream, fused=fused):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.nn.relu(fused(x, training=True))
            return y, tape.gradient(y, x, output_gradients=upstream)

        context.enable_run_metadata()
        step(x, upstream)
        metadata = context.export_run_metadata()
        context.disable_run_metadata()
        graphs = [graph for found in metadata.function_graphs for graph in found.partition_graphs]
        kinds = {node.op for graph in graphs for node in graph.node}
        assert any("FusedBatchNormEx" in kind for kind in kinds)
        assert "Relu" not in kinds


@pytest.mark.parametrize(
    ("settings", "shape", "words"),
    [
        ({"synchronized": True}, (None, 4), "synchronized"),
        ({"renorm": True}, (None, 4), "renormalizes"),
        ({"axis": 2}, (None, 4, 5, 6), "axis is 2"),
        ({"axis": 0}, (4, 5), "axis is 0"),
        ({"dtype": "float64"}, (None, 4), "float64"),
        ({}, (None, 1, 2, 3, 4, 5), "6 dimensions"),
    ],
)
def test_refused(settings, shape, words):
    layer = keras.layers.BatchNormalization(**settings)
    layer.build(shape)
    assert words in kernel.refuses(layer)


def test_masks_of_functional_models_are_refused_beforehand():
    x = keras.Input((4, 3))
    layer = keras.layers.BatchNormalization()
    model = keras.Model(x, layer(keras.layers.Masking()(x)))
    assert kernel.refuses(model.layers[-1]) == "its input has a mask"
