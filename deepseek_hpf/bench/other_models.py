"""Models of the suite that are not for images, compiled: a GPT, an LSTM, an MLP."""

from typing import Any

import keras
from keras import layers


def lstm(units: int = 256, steps: int = 64, features: int = 64) -> keras.Model:
    """Two LSTM layers over a sequence of vectors, and a classification of the whole.

    Args:
        units: Of each layer.
        steps: Length of the sequence.
        features: Size of a vector.

    Returns:
        The compiled model.
    """
    inputs = keras.Input((steps, features))
    x = layers.LSTM(units, return_sequences=True)(inputs)
    x = layers.LSTM(units)(x)
    return _classifier(inputs, x, "lstm")


def mlp(width: int = 1024, depth: int = 3, features: int = 784) -> keras.Model:
    """Dense layers with ReLU, and a classification.

    Args:
        width: Of each layer.
        depth: How many layers.
        features: Size of the input.

    Returns:
        The compiled model.
    """
    x = inputs = keras.Input((features,))
    for _ in range(depth):
        x = layers.Dense(width, activation="relu")(x)
    return _classifier(inputs, x, "mlp")


def gpt(
    blocks: int = 4, width: int = 256, heads: int = 8, length: int = 128, vocabulary: int = 256
) -> keras.Model:
    """A GPT (Radford et al. 2019) over bytes: pre-norm blocks, causal attention, GELU.

    Args:
        blocks: How many.
        width: Of the embedding; the blocks' hidden layers are four times as wide.
        heads: Of the attention; they share the width.
        length: Tokens of a sequence.
        vocabulary: Different tokens.

    Returns:
        The compiled model, which predicts a token at every place.
    """
    inputs = keras.Input((length,), dtype="int32")
    x = layers.Embedding(vocabulary, width)(inputs)
    x = PositionEmbedding(length)(x)
    for _ in range(blocks):
        x = _block(x, width, heads)
    x = layers.LayerNormalization(epsilon=1e-5)(x)
    model = keras.Model(inputs, layers.Dense(vocabulary)(x), name="gpt")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    return model


@keras.saving.register_keras_serializable(package="deepseek_hpf.bench")
class PositionEmbedding(layers.Layer):
    """Adds a learned vector for each place of a sequence.

    Args:
        length: Places.
        **options: Those of every layer.
    """

    def __init__(self, length: int, **options: Any):
        super().__init__(**options)
        self.length = length

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the vectors, of the inputs' width."""
        shape = (self.length, input_shape[-1])
        self.places = self.add_weight(shape=shape, initializer="uniform", name="places")

    def call(self, x: Any) -> Any:
        """Adds them."""
        return x + keras.ops.cast(self.places, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """The length, and what every layer has."""
        return {**super().get_config(), "length": self.length}


def _block(x: Any, width: int, heads: int) -> Any:
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    h = layers.MultiHeadAttention(heads, width // heads)(h, h, use_causal_mask=True)
    x = layers.Add()([x, h])
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    h = layers.Dense(4 * width, activation="gelu")(h)
    return layers.Add()([x, layers.Dense(width)(h)])


def _classifier(inputs: Any, x: Any, name: str, classes: int = 10) -> keras.Model:
    outputs = layers.Dense(classes, activation="softmax")(x)
    model = keras.Model(inputs, outputs, name=name)
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    return model
