"""Layers that are run again in the backward pass: the same step, to the bit where XLA lets it."""

import keras
import numpy as np
import pytest

from deepseek_hpf.memory import compress_activations

RNG = np.random.default_rng()
ON_JAX = keras.backend.backend() == "jax"
ON_TORCH = keras.backend.backend() == "torch"


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """Its layers learn from the running call that it trains."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = keras.layers.Dense(8, name="inner", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(0.5, seed=5, dtype=self.dtype_policy)
        self.supports_masking = True

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, mask=None):
        self.add_loss(keras.ops.cast(1e-3 * keras.ops.mean(keras.ops.square(x)), "float32"))
        return x + self.dropout(self.dense(x))


def model(dtype, **options):
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(8, use_bias=False, dtype=dtype),
        keras.layers.BatchNormalization(dtype=dtype),
        keras.layers.Dropout(0.3, seed=7, dtype=dtype),
        Block(name="block", dtype=dtype),
        keras.layers.Dense(1, dtype="float32"),
    ]
    made = keras.Sequential([keras.Input((8,)), *layers])
    made.compile(keras.optimizers.SGD(0.1), "mse", **options)
    return made


def state(made):
    """Weights, statistics and seeds."""
    parts = [part for part in made._flatten_layers() if not isinstance(part, keras.Model)]
    seeds = [generator.state for part in parts for generator in part._seed_generators]
    return [keras.ops.convert_to_numpy(v.value) for v in [*made.weights, *seeds]]


def trained(made, x, y, steps=2):
    losses = made.fit(x, y, batch_size=len(x) // steps, shuffle=False, verbose=0).history["loss"]
    return [np.array(losses), *state(made)]


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        if ON_JAX:  # XLA joins the operations of the second run to others than those of the first
            assert np.allclose(ours, theirs, rtol=1e-2, atol=1e-4)
        else:
            assert np.array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"] if ON_TORCH else ["float32"])
def test_the_same_step_seeds_and_statistics_included(dtype):
    x, y = (RNG.normal(size=(32, n)).astype("float32") for n in (8, 1))
    # TensorFlow's graph optimizer fuses the operations of the first run otherwise.
    options = {"run_eagerly": True} if keras.backend.backend() == "tensorflow" else {}
    expected = trained(model(dtype, **options), x, y)
    made = model(dtype, **options)
    report = compress_activations(made, "recompute")
    assert "block" in report.compressed
    assert report.refused["block/inner"] == "'block', which holds it, is recomputed"
    assert_same(trained(made, x, y), expected)


def test_revert_takes_it_back():
    made = model("float32")
    compress_activations(made, "recompute").revert()
    assert not any("call" in vars(layer) for layer in made._flatten_layers())
