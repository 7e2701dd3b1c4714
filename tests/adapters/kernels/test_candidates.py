import keras
import pytest

pytestmark = pytest.mark.backend("tensorflow")


def chosen(layer):
    from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates

    return next((n for n, module in candidates(layer).items() if not module.refuses(layer)), None)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (keras.layers.Conv2D(4, 3, groups=4, activation="gelu"), "grouped convolution"),
        (keras.layers.Conv2D(4, 3, activation="gelu"), "activation"),
        (keras.layers.Conv2D(4, 3), None),
        (
            keras.layers.DepthwiseConv2D(3, strides=2, dtype="mixed_bfloat16"),
            "depthwise convolution",
        ),
        (keras.layers.DepthwiseConv2D(3, activation="silu"), "activation"),
        (keras.layers.Dropout(0.5), None),
    ],
)
def test_choice_of_a_kernel(layer, name):
    layer.build((None, 8, 8, 4))
    assert chosen(layer) == name


def test_subclasses_have_no_kernel():
    class Own(keras.layers.Dense):
        pass

    layer = Own(4, activation="gelu")
    layer.build((None, 4))
    assert chosen(layer) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (keras.layers.Conv2D(4, 3, groups=4), (2, 8, 8, 4)),
        (keras.layers.DepthwiseConv2D(5, strides=2, dtype="mixed_bfloat16"), (2, 8, 8, 4)),
        (keras.layers.Activation("gelu"), (2, 128, 128)),
        (keras.layers.LayerNormalization(), (2, 8, 4)),
        (keras.layers.LSTM(4), (2, 5, 3)),
    ],
)
def test_xla_compiles_steps_with_kernels(layer, shape):
    import tensorflow as tf

    from deepseek_hpf.adapters.kernels.candidates_tensorflow import candidates

    layer.build(shape)
    name = chosen(layer)
    layer.call = candidates(layer)[name].wrap(layer, layer.call)

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.cast(layer(x), tf.float32) ** 2)
        return loss, tape.gradient(loss, x)

    x = tf.random.normal(shape)
    plain, compiled = tf.function(step)(x), tf.function(step, jit_compile=True)(x)
    for one, other in zip(plain, compiled, strict=True):
        difference = tf.reduce_max(tf.abs(one - other)) / tf.reduce_max(tf.abs(one))
        assert difference < (0.03 if layer.compute_dtype == "bfloat16" else 1e-4)
