"""A made-up batch trains the model that it was made for."""

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.synthetic_batch import FREE_SIZE, synthetic_batch
from deepseek_hpf.errors import ConfigError

LOSSES = {
    "mse": "float32",
    "sparse_categorical_crossentropy": "int32",
    "categorical_crossentropy": "float32",
    "binary_crossentropy": "float32",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_targets_fit_the_loss(loss):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, activation="softmax")])
    model.compile("sgd", loss)
    x, y = synthetic_batch(model, rows=6, seed=int(np.random.default_rng().integers(1000)))
    assert x.shape == (6, 5)
    assert y.dtype == LOSSES[loss]
    assert np.isfinite(model.train_on_batch(x, y))
    if loss == "categorical_crossentropy":
        np.testing.assert_array_equal(y.sum(-1), 1)
    if loss == "sparse_categorical_crossentropy":
        assert set(y) <= set(range(4))


def test_indices_stay_in_the_embedding():
    words = keras.Input((None,), dtype="int32", name="words")
    floats = keras.Input((3,), name="floats")
    hidden = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(7, 4)(words))
    outputs = {
        "kind": keras.layers.Dense(3, name="kind")(hidden),
        "size": keras.layers.Dense(1, name="size")(keras.layers.Concatenate()([hidden, floats])),
    }
    model = keras.Model({"words": words, "floats": floats}, outputs)
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "size": "mse"}
    model.compile("sgd", losses)
    x, y = synthetic_batch(model, rows=50)
    assert x["words"].shape == (50, FREE_SIZE)
    assert x["words"].min() >= 0
    assert x["words"].max() < 7
    assert y["kind"].shape == (50,)
    assert y["size"].dtype == "float32"
    model.train_on_batch(x, y)


def test_the_seed_decides():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    one, same, other = (synthetic_batch(model, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_model_that_does_not_say_what_it_takes_is_refused():
    class Mine(keras.Model):
        def call(self, x):
            return x

    for model in (Mine(), keras.Sequential([keras.layers.Dense(1)])):
        with pytest.raises(ConfigError, match="does not say what it takes"):
            synthetic_batch(model)
