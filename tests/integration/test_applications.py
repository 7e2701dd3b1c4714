"""Known architectures train under each policy, in what the report says, on finite weights."""

import keras
import numpy as np
import pytest
from keras import layers

from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.callbacks.precision_overrides import PrecisionOverrides

POLICIES = ["float32", "mixed_bfloat16", "mixed_float16"]
APPLICATIONS = [
    "ResNet50V2",
    "MobileNetV2",
    "EfficientNetV2B0",
    "DenseNet121",
    "ConvNeXtTiny",
]
LONG_UNDER_XLA = {"DenseNet121", "EfficientNetV2B0", "ResNet50V2"}


def digits(rows, size):
    """Real images: scikit-learn's digits, 8 pixels upscaled, in three channels from 0 to 16."""
    loaded = pytest.importorskip("sklearn.datasets").load_digits()
    chosen = np.random.default_rng().choice(len(loaded.target), rows, replace=False)
    images = np.repeat(np.repeat(loaded.images[chosen], size // 8, 1), size // 8, 2)
    return np.repeat(images[..., None], 3, -1).astype("float32"), loaded.target[chosen]


def small_resnet(size):
    def block(x, filters, stride):
        y = layers.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization()(y)
        if stride != 1:
            x = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
        return layers.ReLU()(layers.Add()([x, y]))

    inputs = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(8, 3, padding="same", name="stem")(x)
    x = block(block(x, 8, 1), 16, 2)
    outputs = layers.Dense(10, activation="softmax", name="head")(
        layers.GlobalAveragePooling2D()(x)
    )
    return keras.Model(inputs, outputs)


@keras.saving.register_keras_serializable("tests")
class TransformerEncoder(layers.Layer):
    """In the style of KerasHub: layers made in `build`, pre-norm, dropout inside the attention."""

    def __init__(self, heads, width, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width = heads, width

    def build(self, shape):
        size = shape[-1]
        kwargs = {"dtype": self.dtype_policy}
        self.attend_norm = layers.LayerNormalization(name="attend_norm", **kwargs)
        self.attend = layers.MultiHeadAttention(
            self.heads, size // self.heads, dropout=0.1, name="attend", **kwargs
        )
        self.attend.build(shape, shape)
        self.feed_norm = layers.LayerNormalization(name="feed_norm", **kwargs)
        self.widen = layers.Dense(self.width, activation="gelu", name="widen", **kwargs)
        self.narrow = layers.Dense(size, name="narrow", **kwargs)
        for layer, inputs in [
            (self.attend_norm, shape), (self.feed_norm, shape), (self.widen, shape),
            (self.narrow, (*shape[:-1], self.width)),
        ]:  # fmt: skip
            layer.build(inputs)

    def call(self, x, mask=None, training=False):
        y = self.attend_norm(x)
        x = x + self.attend(y, y, use_causal_mask=True, training=training)
        return x + self.narrow(self.widen(self.feed_norm(x)))


def transformer(size, vocabulary=17):
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(vocabulary, size, name="embed")(tokens)
    for i in range(2):
        x = TransformerEncoder(2, 2 * size, name=f"block{i}")(x)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(tokens, layers.Dense(vocabulary, name="logits")(x))


def train(model, policy, x, y, *, from_logits=False):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    # Adam: at two images a batch the gradients of a deep network explode, in float32 as well.
    model.compile(keras.optimizers.Adam(1e-4), loss)
    overrides = PrecisionOverrides(policy)
    half = len(x) // 2
    history = model.fit(x, y, batch_size=half, epochs=1, verbose=0, callbacks=[overrides]).history
    assert int(model.optimizer.iterations) + int(model.optimizer.skipped_steps) == 2
    assert policy == "mixed_float16" or np.isfinite(history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    report = overrides.report
    found = walk(model)
    assert [w.path for w in found] == [row.path for row in report.rows]
    for walked, row in zip(found, report.rows, strict=True):
        expected = keras.DTypePolicy(row.after)
        assert walked.layer.compute_dtype == expected.compute_dtype, row
        for variable in walked.layer._trainable_variables:
            assert keras.backend.standardize_dtype(variable.dtype) == expected.variable_dtype, row
    outputs = model.predict_on_batch(x[:half])
    assert np.asarray(outputs).dtype == np.float32
    assert np.isfinite(outputs).all()
    assert model.optimizer.scales_loss == (policy == "mixed_float16")
    return report


@pytest.mark.slow_with("jax")
@pytest.mark.parametrize("policy", POLICIES)
def test_a_small_resnet(policy):
    report = train(small_resnet(16), policy, *digits(8, 16))
    assert report.row("stem").after == policy
    assert report.row("head").after == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_a_transformer(policy):
    tokens = np.random.default_rng().integers(0, 17, (4, 7))
    report = train(transformer(8), policy, tokens[:, :-1], tokens[:, 1:], from_logits=True)
    assert report.row("block1/attend/query").after == policy
    assert report.row("logits").after == "float32"
    softmaxes = [row for row in report.rows if row.class_name == "Softmax"]
    assert [row.after for row in softmaxes] == ["float32"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", APPLICATIONS)
def test_keras_applications(name, policy):
    if policy != "mixed_bfloat16" and keras.backend.backend() != "tensorflow":
        pytest.skip("minutes each: one policy on the other back ends")
    if name in LONG_UNDER_XLA and keras.backend.backend() == "jax":
        pytest.skip("compiles for a minute and more: the other two are built of the same layers")
    make = getattr(keras.applications, name)
    model = make(weights=None, input_shape=(32, 32, 3), classes=10)
    train(model, policy, *digits(4, 32))
    keras.backend.clear_session()
