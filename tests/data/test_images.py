"""TFDS image datasets: what cannot be used is refused in a line; what is prepared is read."""

import numpy as np
import pytest

from deepseek_hpf import data
from deepseek_hpf.data import image_datasets
from deepseek_hpf.errors import ConfigError

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifra10", "not in TFDS's catalogue. Did you mean 'cifar10'? Received: name='cifra10'"),
        ("../../etc", "not in TFDS's catalogue. Received"),
        ("", "not in TFDS's catalogue. Received"),
        ("cifar10:9.9.9", "not have this version or configuration of the dataset. Received: name="),
        ("cifar10/none", "not have this version or configuration of the dataset. Received: name="),
        ("imdb_reviews", "Expected an image classification set"),
        ("coco", "Expected an image classification set"),
        ("cats_vs_dogs", "images of shape (None, None, 3)"),
    ],
)
def test_names_that_are_refused(name, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        data.images(name, cache_dir=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_network_it_says_so_at_once(monkeypatch, tmp_path):
    def no_name_service(*address):
        raise OSError("Name or service not known")

    monkeypatch.setattr(image_datasets.socket, "getaddrinfo", no_name_service)
    monkeypatch.setattr(image_datasets, "getproxies", dict)
    with pytest.raises(ConfigError, match=r"no network: Name or service.*data\.digits"):
        data.images("cifar10", batch_size=8, cache_dir=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_download_that_fails_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(image_datasets, "getproxies", lambda: {"https": "http://proxy"})

    class Builder:
        data_dir = tmp_path

        def download_and_prepare(self):
            raise ConnectionError("refused")

    with pytest.raises(ConfigError, match="no network: refused"):
        image_datasets._prepare("cifar10", Builder())


@pytest.fixture
def prepared(monkeypatch, tmp_path):
    """A small colour dataset, as TFDS writes it, under the name of one of its catalogue."""
    rng = np.random.default_rng()
    pictures = rng.integers(0, 256, (20, 4, 6, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, 20)

    def examples(first, last):
        for index in range(first, last):
            yield index, {"image": pictures[index], "label": int(labels[index])}

    builder = tfds.dataset_builders.store_as_tfds_dataset(
        name="made_up",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(4, 6, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={"train": examples(0, 14), "test": examples(14, 20)},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    monkeypatch.setattr(image_datasets, "prepared_builder", lambda name, cache: builder)
    return pictures, labels


def test_arrays_and_batches(prepared):
    pictures, labels = prepared
    (x_train, y_train), (x_test, y_test) = data.images("made_up")
    np.testing.assert_array_equal(x_train, pictures[:14] / np.float32(255))
    np.testing.assert_array_equal(x_test, pictures[14:] / np.float32(255))
    np.testing.assert_array_equal(np.concatenate([y_train, y_test]), labels)

    train, test = data.images("made_up", batch_size=4)
    assert (len(train), len(test)) == (3, 2)
    first = np.concatenate([np.asarray(images) for images, _ in test])
    np.testing.assert_array_equal(first, x_test)
    again, _ = data.images("made_up", batch_size=4)
    order = [np.asarray(labels).tolist() for _, labels in train]
    assert order == [np.asarray(labels).tolist() for _, labels in again]

    with pytest.raises(ConfigError, match=r"has the splits \['test', 'train'\]. Received: split"):
        data.images("made_up", "validation")
    with pytest.raises(ConfigError, match="between 1 and 14"):
        data.images("made_up", "train", batch_size=15)
