"""The embedded dataset: scikit-learn's 1,797 handwritten digits, as a TFDS dataset on disk."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from deepseek_hpf.data.batches import check_batch_size, make_batches
from deepseek_hpf.data.cache import ensure_folder
from deepseek_hpf.data.resize import enlarge
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.files import cache_directory

VERSION = "1.0.0"
CLASSES = 10
SIDE = 8  # pixels
SPLITS = ("train", "test")
_LARGEST_SIDE = 512  # pixels: 1,797 such images take 1.9 GB
_TEST_EVERY = 5

Raw = tuple[NDArray[np.uint8], NDArray[np.int64]]


def digits(
    split: str | None = None,
    *,
    batch_size: int | None = None,
    size: int = SIDE,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Returns scikit-learn's handwritten digits, 1,442 for training and 355 for testing; offline.

    Of each class every fifth image is for testing: the same stratified split always. On TensorFlow
    the images are written once as a TFDS dataset, whole or not at all, and read back with TFDS; a
    damaged one is written anew. JAX and PyTorch get the same bits from scikit-learn directly:
    TFDS can neither write nor read TFRecords without TensorFlow, which is not needed there.

    Args:
        split: `"train"`, `"test"`, or None for both.
        batch_size: Images a batch; None for arrays.
        size: Side of the images in pixels, 8 (as they are) to 512 (bilinear).
        seed: Of the order of training batches, which is a new one each epoch. On TensorFlow the
            global seed, `keras.utils.set_random_seed`, counts too, as always in tf.data.
        cache_dir: Folder for the dataset; by default that of the environment variable
            `DEEPSEEK_HPF_CACHE`, else `deepseek_hpf` in `XDG_CACHE_HOME` or `~/.cache`.

    Returns:
        Without `batch_size`, arrays: images `(count, size, size, 1)`, float32 in [0, 1], and labels
        `(count,)`, int64; `(images, labels)` of one split, or `(train, test)` of such pairs.
        With it, batches for `model.fit`: a `tf.data.Dataset` on TensorFlow, a
        `keras.utils.PyDataset` on the other back ends; training batches are shuffled and full.

    Raises:
        ConfigError: An argument is out of its range, an extra is not installed, or the cache
            folder cannot be written.

    Example:
        >>> from deepseek_hpf import data
        >>> (x_train, y_train), (x_test, y_test) = data.digits()
        >>> x_train.shape, x_test.shape, str(x_train.dtype)
        ((1442, 8, 8, 1), (355, 8, 8, 1), 'float32')
        >>> train = data.digits("train", batch_size=32, size=16)
        >>> len(train)
        45

    References:
        E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998; https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    _check(split, batch_size, size)
    if split is None:
        options: dict[str, Any] = {"batch_size": batch_size, "size": size, "seed": seed}
        return tuple(digits(name, cache_dir=cache_dir, **options) for name in SPLITS)
    images, labels = _read(split, cache_directory(cache_dir))
    # A copy: what the caller does to the labels must not reach the next caller's.
    arrays = enlarge(np.divide(images, 255, dtype=np.float32), size), labels.copy()
    if batch_size is None:
        return arrays
    return make_batches(arrays, batch_size, shuffle=split == "train", seed=seed)


def _check(split: str | None, batch_size: int | None, size: int) -> None:
    if split is not None and split not in SPLITS:
        raise ConfigError(f"`split` must be 'train', 'test' or None. Received: split={split!r}")
    if not isinstance(size, int) or not SIDE <= size <= _LARGEST_SIDE:
        raise ConfigError(
            f"`size` must be an integer between {SIDE} and {_LARGEST_SIDE} pixels. "
            f"Received: size={size!r}"
        )
    if batch_size is not None:
        check_batch_size(batch_size)


def _read(split: str, cache: Path) -> Raw:
    if keras.backend.backend() != "tensorflow":
        return _embedded(split)
    tfds = import_extra("tensorflow_datasets", "datasets")
    folder = ensure_folder(cache / "tfds" / "digits" / VERSION, _write_tfds)
    dataset = tfds.builder_from_directory(folder).as_dataset(split=split, batch_size=-1)
    return dataset["image"].numpy(), dataset["label"].numpy()


@functools.cache
def _embedded(split: str) -> Raw:
    """Returns a split of scikit-learn's images as `(count, 8, 8, 1)`, grey levels 0 to 255."""
    bunch = import_extra("sklearn.datasets", "datasets").load_digits()
    labels = bunch.target.astype(np.int64)
    for_test = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        for_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    chosen = for_test if split == "test" else ~for_test
    levels = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)  # from 0 to 16
    return levels[..., None], labels[chosen]


def _write_tfds(folder: Path) -> None:
    """Writes both splits as a TFDS dataset (TFRecord, PNG); the folder is named by the version."""
    tfds = import_extra("tensorflow_datasets", "datasets")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(
                shape=(SIDE, SIDE, 1), dtype=np.uint8, encoding_format="png"
            ),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
        }
    )
    talk = io.StringIO()  # bars and bold lines for a second's work
    with contextlib.redirect_stdout(talk), contextlib.redirect_stderr(talk):
        builder = tfds.dataset_builders.store_as_tfds_dataset(
            name="digits",
            version=VERSION,
            features=features,
            split_datasets={split: _examples(split) for split in SPLITS},
            description="Handwritten digits, 8 x 8 pixels, 17 grey levels, from scikit-learn.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            data_dir=folder.parent / "tfds",
            disable_shuffling=True,
        )
    for path in Path(builder.data_dir).iterdir():
        os.rename(path, folder / path.name)


def _examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, label) in enumerate(zip(*_embedded(split), strict=True)):
        yield index, {"image": image, "label": int(label)}
