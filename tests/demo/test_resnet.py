"""ResNet-20: its size, its shortcut, and that it can be saved."""

import keras
import numpy as np
import pytest

from deepseek_hpf.demo.resnet import _shorten, create_resnet20


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return create_resnet20((8, 12, 3), classes=5)


def test_it_has_twenty_layers_with_weights(model):
    weighted = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense)
    ]
    assert len(weighted) == 20
    assert [layer.filters for layer in weighted[:-1]] == [16] * 7 + [32] * 6 + [64] * 6
    assert model.output_shape == (None, 5)


def test_its_size_is_the_papers():
    """The paper's table 6 says 0.27 million parameters for CIFAR-10."""
    model = create_resnet20((32, 32, 3), classes=10)
    convolutions = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    scales_and_offsets = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == convolutions + scales_and_offsets + 64 * 10 + 10
    assert round(trainable / 1e6, 2) == 0.27


def test_the_shortcut_takes_every_second_pixel_and_adds_zeros():
    inputs = keras.Input((5, 6, 3))
    shortcut = keras.Model(inputs, _shorten(inputs, 8))
    x = np.random.default_rng().normal(size=(2, 5, 6, 3)).astype(np.float32)
    got = keras.ops.convert_to_numpy(shortcut(x))
    np.testing.assert_array_equal(got[..., 2:5], x[:, ::2, ::2])
    assert not got[..., :2].any()
    assert not got[..., 5:].any()


def test_a_saved_model_gives_the_same_bits(model, tmp_path):
    model.save(tmp_path / "resnet.keras")
    loaded = keras.saving.load_model(tmp_path / "resnet.keras")
    x = np.random.default_rng().normal(size=(2, 8, 12, 3)).astype(np.float32)
    np.testing.assert_array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))
