"""Losses that layers add: known by identities of tensors, which tensors that are gone had too."""

import keras
import numpy as np
import pytest

from deepseek_hpf.memory import compress_activations
from deepseek_hpf.storage.repeatable_call import loss_ids_apart


class Adding(keras.layers.Layer):
    """Adds a loss, as does the layer that it holds."""

    def __init__(self, factor, inner=None, **options):
        super().__init__(**options)
        self.factor, self.inner = factor, inner

    def call(self, x):
        self.add_loss(self.factor * keras.ops.mean(keras.ops.square(x)))
        return x if self.inner is None else self.inner(x)


def test_identities_of_before_count_for_nothing_within():
    layer = Adding(0.5, Adding(0.25))
    layer._loss_ids.update({1, 2})
    with loss_ids_apart(layer) as parts:
        assert parts == [layer, layer.inner]
        assert layer._loss_ids == set()
        layer._loss_ids.add(3)
    assert layer._loss_ids == {1, 2}


@pytest.mark.backend("tensorflow", "jax")
def test_a_recomputed_layer_adds_each_loss_once():
    rng = np.random.default_rng()
    x, y = rng.normal(size=(8, 16)).astype("float32"), rng.normal(size=(8, 1))
    weights = []
    for storage in (None, "recompute"):
        keras.utils.set_random_seed(5)
        held = Adding(0.5, Adding(0.25, name="held"), name="holder")
        layers = [keras.layers.Dense(16), held, keras.layers.Dense(1)]
        made = keras.Sequential([keras.Input((16,)), *layers])
        made.compile(keras.optimizers.SGD(0.1), "mse")
        if storage is not None:
            compress_activations(made, storage)
        weights.append((made.fit(x, y, verbose=0).history["loss"], made.get_weights()))
    (loss, plain), (recomputed_loss, recomputed) = weights
    np.testing.assert_allclose(recomputed_loss, loss, rtol=1e-5)
    for ours, theirs in zip(recomputed, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
