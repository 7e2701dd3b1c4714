"""Layers under TensorFlow that keep less: gradients against plain ones and against float64."""

import keras
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from deepseek_hpf.storage.noise import GROUP  # noqa: E402
from deepseek_hpf.storage.saved_calls_tensorflow import refusal, wrap  # noqa: E402
from deepseek_hpf.storage.stored_call import Settings  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")

RNG = np.random.default_rng()
layers = keras.layers


class SelfAttention(layers.Layer):
    """A layer of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(
            2, 4, dropout=0.1, seed=3, dtype=self.dtype_policy
        )

    def build(self, shape):
        self.attention.build(shape, shape)
        self.built = True

    def call(self, x, training=None):
        return self.attention(x, x, use_causal_mask=True, training=training)


LAYERS = {
    "dense": (layers.Dense, {"units": 32, "activation": "relu"}, (16, 64)),
    "dense of sequences": (layers.Dense, {"units": 8}, (4, 8, 32)),
    "einsum": (
        layers.EinsumDense,
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 3), "bias_axes": "de"},
        (4, 8, 32),
    ),
    "causal": (
        layers.Conv1D,
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        (4, 32, 8),
    ),
    "convolution": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "strides": 2, "activation": "tanh"},
        (4, 9, 8, 8),
    ),
    "3D": (layers.Conv3D, {"filters": 2, "kernel_size": 2}, (2, 5, 5, 5, 4)),
    "transposed": (layers.Conv2DTranspose, {"filters": 3, "kernel_size": 3}, (2, 6, 6, 8)),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3}, (4, 8, 8, 8)),
    "separable": (layers.SeparableConv2D, {"filters": 3, "kernel_size": 3}, (4, 8, 8, 8)),
    "batch norm": (layers.BatchNormalization, {}, (8, 8, 8, 4)),
    "layer norm": (layers.LayerNormalization, {}, (32, 64)),
    "group norm": (layers.GroupNormalization, {"groups": 2}, (4, 8, 8, 8)),
    "relu": (layers.ReLU, {}, (32, 33)),
    "relu6": (layers.Activation, {"activation": "relu6"}, (32, 33)),
    "leaky": (layers.LeakyReLU, {}, (32, 33)),
    "prelu": (layers.PReLU, {}, (32, 33)),
    "elu": (layers.ELU, {}, (32, 33)),
    "gelu": (layers.Activation, {"activation": "gelu"}, (32, 33)),
    "silu": (layers.Activation, {"activation": "silu"}, (32, 33)),
    "tanh": (layers.Activation, {"activation": "tanh"}, (32, 33)),
    "softmax": (layers.Softmax, {}, (32, 64)),
    "dropout": (layers.Dropout, {"rate": 0.3, "seed": 1}, (32, 33)),
    "max pooling": (layers.MaxPooling2D, {}, (2, 8, 9, 16)),
    "global max": (layers.GlobalMaxPooling2D, {}, (4, 8, 8, 8)),
    "attention": (SelfAttention, {}, (4, 16, 8)),
}
FAST = ("dense", "batch norm", "gelu", "dropout")
KINDS = [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in LAYERS]
SLOW = pytest.mark.slow


def made(kind, policy="float32"):
    create, arguments, shape = LAYERS[kind]
    layer = create(**arguments, dtype=policy)
    layer.build(shape)
    for variable in layer.trainable_variables:
        variable.assign(0.3 * RNG.standard_normal(variable.shape))
    return layer, tf.cast(RNG.standard_normal(shape), layer.compute_dtype)


def packing(layer, storage="int8", seed=0, smallest=0):
    layer.call = wrap(layer, layer.call, Settings(storage, seed, smallest))
    return layer


def gradients(layer, x, upstream=None, mode="graph", training=True):
    """The result, the gradient of the input, those of the weights."""

    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            # Not the argument, which the caller holds anyway.
            y = layer(x * tf.ones((), x.dtype), training=training)
        weights = [v.value for v in layer.trainable_variables]
        return [y, *tape.gradient(y, [x, *weights], upstream)]

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "jit", autograph=False)
    before = [v.numpy() for v in layer.non_trainable_variables]
    upstream = tf.ones_like(layer(x)) if upstream is None else upstream
    found = [tf.cast(value, tf.float64).numpy() for value in run(x, upstream)]
    for variable, value in zip(layer.non_trainable_variables, before, strict=True):
        variable.assign(value)
    return found


def upstream_of(layer, x):
    shape = layer(x, training=False).shape
    return tf.cast(RNG.standard_normal(shape), layer.compute_dtype)


def error(found, exact):
    return np.linalg.norm(found - exact) / (np.linalg.norm(exact) + 1e-9)


@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=SLOW)])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_storage_changes_no_bit(kind, policy):
    layer, x = made(kind, policy)
    if refusal(layer, "sparse"):
        pytest.skip("refused")
    upstream = upstream_of(layer, x)
    expected = gradients(layer, x, upstream)
    found = gradients(packing(layer, "sparse"), x, upstream)
    assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize(
    "mode", ["graph", pytest.param("jit", marks=SLOW), pytest.param("eager", marks=SLOW)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_close_and_results_the_same(kind, mode):
    layer, x = made(kind)
    upstream = upstream_of(layer, x)
    expected = gradients(layer, x, upstream, mode)
    found = gradients(packing(layer), x, upstream, mode)
    # Compilers fuse what is in one graph.
    tolerance = 0 if mode == "graph" else 1e-5
    np.testing.assert_allclose(found[0], expected[0], rtol=tolerance, atol=tolerance)
    for ours, exact in zip(found, expected, strict=True):
        # The bias of an attention's keys has no gradient but rounding.
        assert error(ours, exact) < 0.05 or np.abs(exact).max() < 1e-4


def step_of(x, bits):
    """The largest step of any group, when all its values are finite."""
    rows = np.asarray(x, "float64").reshape(-1, GROUP)
    return (rows.max(1) - rows.min(1)).max() / (2**bits - 2)


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_float16", marks=SLOW)])
def test_gradient_of_a_product_is_within_the_step(bits, policy):
    layer, x = made("dense", policy)
    layer.activation = None
    upstream = upstream_of(layer, x)
    _, of_input, of_weight, _ = gradients(packing(layer, f"int{bits}"), x, upstream)
    x, upstream = (tf.cast(value, tf.float64).numpy() for value in (x, upstream))
    exact = x.T @ upstream
    low = policy != "float32"
    rounding = 2.0**-10 if low else 2.0**-20
    share = np.abs(upstream).sum(0)
    bound = (step_of(x, bits) + rounding * np.abs(x).max()) * share + rounding * np.abs(exact)
    assert (np.abs(of_weight - exact) <= bound).all()
    assert np.abs(of_weight - exact).max() > 0
    weight = tf.cast(tf.cast(layer.kernel.value, layer.compute_dtype), tf.float64).numpy()
    assert error(of_input, upstream @ weight.T) < 16 * rounding  # no packed tensor is in it


def test_the_mean_of_many_roundings_is_the_value():
    """Of groups of the same values each is rounded in its own way."""
    copies = 512
    row = RNG.standard_normal(GROUP).astype("float32")
    layer = layers.Dense(1, use_bias=False)
    layer.build((copies, GROUP))
    x = tf.constant(np.tile(row, (copies, 1)))
    _, _, of_weight = gradients(packing(layer, "int4"), x)
    # One rounding has at most half a step of deviation.
    deviation = 0.5 * step_of(row, 4) / np.sqrt(copies)
    assert (np.abs(of_weight[:, 0] / copies - row) < 6 * deviation).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_values_that_are_not_finite_reach_the_gradient(value):
    layer, x = made("dense")
    layer.activation = None
    x = x.numpy()
    x[3, 5] = value
    _, _, of_weight, _ = gradients(packing(layer), tf.constant(x))
    expected = x.sum(0)
    assert np.array_equal(of_weight[5], np.full(32, expected[5]), equal_nan=True)
    assert np.isfinite(of_weight[np.arange(64) != 5]).all()


def operations(function, *arguments):
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    return [op.type for op in graph.get_operations()]


def test_inference_is_as_it_was():
    layer, x = made("dense")
    plain = operations(lambda x: layer(x, training=False), x)
    packing(layer)
    assert operations(lambda x: layer(x, training=False), x) == plain


def packings(function, *arguments):
    return operations(function, *arguments).count("PartitionedCall")


def test_what_two_layers_keep_is_packed_once():
    first, x = made("dense")
    second, _ = made("dense")

    def run(x, both):
        weights = [first.kernel.value, second.kernel.value]
        with tf.GradientTape() as tape:
            x = tf.sin(x)
            y = first(x, training=True) + (
                second(tf.reshape(x, [16, 64]), training=True) if both else 0.0
            )
        return [g for g in tape.gradient(y, weights) if g is not None]

    for layer in (first, second):
        layer.activation = None
        packing(layer)
    # One packing and one unpacking; one unpacking more.
    assert packings(lambda x: run(x, False), x) == 2
    assert packings(lambda x: run(x, True), x) == 3


def test_a_result_that_the_next_layer_keeps_gives_the_mask():
    activation, _ = made("relu")
    dense, x = made("dense")
    dense.activation = None
    for layer in (activation, dense):
        packing(layer)

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = dense(activation(tf.sin(x), training=True), training=True)
        return tape.gradient(y, [x, dense.kernel.value])

    assert packings(run, x) == 2


def test_arguments_that_the_caller_holds_are_left():
    layer, x = made("dense")
    layer.activation = None
    packing(layer)

    def run(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return tape.gradient(y, layer.kernel.value)

    assert packings(run, x) == 0


def test_a_tensor_that_comes_in_twice_has_one_gradient():
    class Twice(layers.Layer):
        def call(self, a, b):
            return a * b

    layer, x = packing(Twice()), tf.constant(RNG.standard_normal((8, 64)), tf.float32)

    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            inside = tf.identity(x)
            y = layer(inside, inside)
        return tape.gradient(y, x)

    layer.built = True
    np.testing.assert_allclose(run(x), 2 * x, atol=2 * step_of(x, 8))


def test_loops_are_refused():
    layer = layers.Bidirectional(layers.LSTM(4))
    layer.build((2, 5, 3))
    assert "loop" in refusal(layer, "int8")
    assert refusal(layers.Dense(2), "sparse") is None
    assert "gelu" in refusal(layers.Activation("gelu"), "sparse")


@pytest.mark.parametrize(
    "other", [layers.LSTM(4, name="other"), keras.ops.square], ids=["an RNN", "an operation"]
)
def test_what_another_keeps_anyway_is_left(other):
    inputs = keras.Input((5, 3))
    x = layers.Dense(4)(inputs)
    alone, beside = layers.Dense(2), layers.Dense(2)
    outputs = [alone(layers.ReLU()(x)), beside(x), other(x)]
    keras.Model(inputs, outputs)
    assert refusal(alone, "int8") is None
    assert "keeps its input" in refusal(beside, "int8")
