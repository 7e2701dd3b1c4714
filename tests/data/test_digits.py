"""The embedded digits: the same bits on every back end, in arrays and in batches."""

import sys

import keras
import numpy as np
import pytest

from deepseek_hpf import data
from deepseek_hpf.data.resize import enlarge
from deepseek_hpf.errors import ConfigError


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def source():
    from sklearn.datasets import load_digits

    return load_digits()


def test_splits_hold_every_image_once(cache_dir):
    (x_train, y_train), (x_test, y_test) = data.digits(cache_dir=cache_dir)
    assert x_train.shape == (1442, 8, 8, 1)
    assert x_test.shape == (355, 8, 8, 1)
    assert (x_train.dtype, y_train.dtype) == (np.float32, np.int64)
    expected = np.rint(source().images * 255 / 16) / 255
    got = np.concatenate([x_train, x_test])[..., 0]

    def in_order(images, labels):
        rows = np.column_stack([np.rint(images.reshape(-1, 64) * 255), labels]).astype(int)
        return rows[np.lexsort(rows.T)]

    labels = np.concatenate([y_train, y_test])
    np.testing.assert_array_equal(in_order(got, labels), in_order(expected, source().target))
    assert abs(got - np.rint(got * 255) / 255).max() < 1e-7


def test_splits_are_stratified(cache_dir):
    (_, y_train), (_, y_test) = data.digits(cache_dir=cache_dir)
    total = np.bincount(y_train) + np.bincount(y_test)
    np.testing.assert_array_equal(np.bincount(y_test), total // 5)


def test_the_bits_do_not_depend_on_the_back_end(cache_dir):
    """Every fifth image of a class, and its grey levels: whether by way of TFDS or not."""
    images, labels = data.digits("test", cache_dir=cache_dir)
    flat = source()
    chosen = np.zeros(1797, bool)
    for label in range(10):
        chosen[np.flatnonzero(flat.target == label)[4::5]] = True
    levels = np.rint(flat.images[chosen] * (255 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(images[..., 0], levels.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(labels, flat.target[chosen])


def test_what_a_caller_does_to_the_arrays_does_not_reach_the_next(cache_dir):
    images, labels = data.digits("test", cache_dir=cache_dir)
    kept = images.copy(), labels.copy()
    images[:], labels[:] = 0, 0
    for before, again in zip(kept, data.digits("test", cache_dir=cache_dir), strict=True):
        np.testing.assert_array_equal(before, again)


def test_batches_train(cache_dir):
    train, test = data.digits(batch_size=100, size=16, cache_dir=cache_dir)
    assert (len(train), len(test)) == (14, 4)  # full batches to train, all images to test
    shapes = [tuple(images.shape) for images, _ in test]
    assert shapes == [(100, 16, 16, 1)] * 3 + [(55, 16, 16, 1)]
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(train, validation_data=test, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][1] < history["loss"][0]


def epoch_labels(batches):
    labels = np.concatenate([np.asarray(labels) for _, labels in batches])
    if hasattr(batches, "on_epoch_end"):
        batches.on_epoch_end()
    return labels.tolist()


def test_the_order_is_new_each_epoch_and_the_same_from_the_same_seed(cache_dir):
    first, again, other = (
        data.digits("train", batch_size=50, seed=seed, cache_dir=cache_dir) for seed in (7, 7, 8)
    )
    epochs = [epoch_labels(first) for _ in range(3)]
    assert epochs == [epoch_labels(again) for _ in range(3)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != epoch_labels(other)
    assert len(epochs[0]) == 1400
    test = data.digits("test", batch_size=50, cache_dir=cache_dir)
    assert epoch_labels(test) == data.digits("test", cache_dir=cache_dir)[1].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "validation"}, "`split` must be 'train', 'test' or None. Received: split='val"),
        ({"size": 7}, "`size` must be an integer between 8 and 512 pixels. Received: size=7"),
        ({"size": 16.0}, "Received: size=16.0"),
        ({"size": True}, "Received: size=True"),
        ({"batch_size": 0}, "`batch_size` must be an integer at least 1. Received: batch_size=0"),
        ({"batch_size": 2.0}, "Received: batch_size=2.0"),
        ({"batch_size": 1443, "split": "train"}, "between 1 and 1442, the examples in the split"),
    ],
)
def test_arguments_that_cannot_be(arguments, message, cache_dir):
    with pytest.raises(ConfigError) as caught:
        data.digits(**arguments, cache_dir=cache_dir)
    assert message in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    missing = (
        "tensorflow_datasets" if keras.backend.backend() == "tensorflow" else "sklearn.datasets"
    )
    from deepseek_hpf.data import digits_dataset

    digits_dataset._embedded.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"deepseek_hpf\[datasets\]"):
        data.digits("train", cache_dir=tmp_path)


@pytest.mark.backend("tensorflow")
def test_it_is_a_tfds_dataset_on_disk(cache_dir):
    import tensorflow_datasets as tfds

    data.digits(cache_dir=cache_dir)
    dataset, info = tfds.load("digits", data_dir=cache_dir / "tfds", split="test", with_info=True)
    assert info.splits["train"].num_examples == 1442
    example = next(iter(dataset))
    images, labels = data.digits("test", cache_dir=cache_dir)
    np.testing.assert_array_equal(example["image"].numpy() / np.float32(255), images[0])
    assert int(example["label"]) == labels[0]


@pytest.mark.backend("tensorflow")
def test_a_damaged_dataset_is_written_anew(cache_dir):
    expected, _ = data.digits("train", cache_dir=cache_dir)
    (file,) = (cache_dir / "tfds" / "digits" / "1.0.0").glob("*train.tfrecord*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    got, _ = data.digits("train", cache_dir=cache_dir)
    np.testing.assert_array_equal(got, expected)
    assert file.read_bytes() == content


def test_enlarging_is_bilinear():
    images = np.random.default_rng().random((3, 8, 8, 2)).astype(np.float32)
    assert enlarge(images, 8) is images
    flat = np.full((1, 8, 8, 1), 0.37, np.float32)
    np.testing.assert_allclose(enlarge(flat, 13), 0.37, rtol=1e-6)
    for size in (9, 16, 29):
        expected = keras.ops.convert_to_numpy(
            keras.ops.image.resize(images, (size, size), "bilinear", data_format="channels_last")
        )
        np.testing.assert_allclose(enlarge(images, size), expected, atol=1e-5)
