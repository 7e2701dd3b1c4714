"""Any image classification set of TFDS, downloaded once."""

import difflib
import os
import socket
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import keras
import numpy as np

from deepseek_hpf.data.batches import check_batch_size
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.files import cache_directory

_A_PUBLIC_HOST = ("storage.googleapis.com", 443)


def images(
    name: str,
    split: str | None = None,
    *,
    batch_size: int | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Returns an image classification set of TensorFlow Datasets, e.g. `"cifar10"`.

    It is downloaded at the first use, which needs a network. TFDS needs TensorFlow for it, under
    the other back ends as well; there TensorFlow only reads, on the CPU.

    Args:
        name: A name of TFDS's catalogue; its images have one size and one label each.
        split: A split, e.g. `"train"`, or None for the pair `("train", "test")`.
        batch_size: Images a batch; None for arrays, which hold the whole split in memory.
        seed: Of the order of training batches, which is a new one each epoch.
        cache_dir: Folder for the dataset, as for `digits`.

    Returns:
        Without `batch_size`, arrays: images `(count, height, width, channels)`, float32 in [0, 1],
        and labels `(count,)`, int64; or a pair of such pairs. With it, `tf.data.Dataset`s of such
        batches, which `model.fit` reads under every back end; those of `"train"` are
        shuffled and full.

    Raises:
        ConfigError: The name or the split is unknown, it is no image classification set, an extra
            is not installed, or there is no network to download it.

    Example:
        >>> from deepseek_hpf import data
        >>> data.images("cifra10")
        Traceback (most recent call last):
        ...
        deepseek_hpf.errors.ConfigError: ... is not in TFDS's catalogue. Did you mean 'cifar10'? ...

    References:
        https://www.tensorflow.org/datasets/catalog/overview
    """
    if batch_size is not None:
        check_batch_size(batch_size)
    builder = prepared_builder(name, cache_directory(cache_dir))
    if split is None:
        return tuple(
            _read(builder, one, batch_size=batch_size, seed=seed) for one in ("train", "test")
        )
    return _read(builder, split, batch_size=batch_size, seed=seed)


def prepared_builder(name: str, cache: Path) -> Any:
    """Returns the TFDS builder of an image classification set, downloaded into `cache / "tfds"`.

    Args:
        name: A name of TFDS's catalogue.
        cache: This package's cache folder.

    Returns:
        A prepared `tfds.core.DatasetBuilder`.

    Raises:
        ConfigError: As `images`.
    """
    tfds = import_extra("tensorflow_datasets", "datasets")
    import_extra("tensorflow", "tensorflow")
    if keras.backend.backend() != "tensorflow":
        from deepseek_hpf.data.batches_tensorflow import leave_accelerators_alone

        leave_accelerators_alone()
    _check_name(name, tfds.list_builders(with_community_datasets=False))
    builder = _builder(name, cache / "tfds", tfds)
    _check_features(name, builder.info, tfds)
    if not builder.is_prepared():
        _prepare(name, builder)
    return builder


def _check_name(name: str, known: list[str]) -> None:
    if name.split("/")[0].split(":")[0] in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"The dataset is not in TFDS's catalogue. {hint}Received: name={name!r}. The embedded one "
        "is `data.digits()`."
    )


def _builder(name: str, folder: Path, tfds: Any) -> Any:
    try:
        return tfds.builder(name, data_dir=folder, try_gcs=False)
    except (AssertionError, ValueError) as error:  # TFDS's, for a version or a configuration
        raise ConfigError(
            f"TFDS does not have this version or configuration of the dataset. Received: {name=}"
        ) from error


def _check_features(name: str, info: Any, tfds: Any) -> None:
    features = dict(info.features or {})
    is_labelled = isinstance(features.get("image"), tfds.features.Image) and isinstance(
        features.get("label"), tfds.features.ClassLabel
    )
    if not is_labelled or None in features["image"].shape:
        raise ConfigError(
            "Expected an image classification set whose images have one size, as 'cifar10' is. "
            f"Received: name={name!r}, with features {list(features)}"
            + (f" and images of shape {features['image'].shape}" if is_labelled else "")
        )


def _prepare(name: str, builder: Any) -> None:
    """Downloads; asks first whether there is a network, as TFDS tries for minutes."""
    no_network = (
        f"The dataset {name!r} has to be downloaded, and there is no network: {{}}. Use "
        "`data.digits()`, which is embedded, or download it elsewhere into "
        f"{str(builder.data_dir)!r}."
    )
    if not getproxies():
        try:
            socket.getaddrinfo(*_A_PUBLIC_HOST)
        except OSError as error:
            raise ConfigError(no_network.format(error)) from error
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise ConfigError(no_network.format(error)) from error


def _read(builder: Any, split: str, *, batch_size: int | None, seed: int) -> Any:
    if split not in builder.info.splits:
        raise ConfigError(
            f"The dataset {builder.name!r} has the splits {sorted(builder.info.splits)}. "
            f"Received: split={split!r}"
        )
    if batch_size is None:
        whole = builder.as_dataset(split=split, batch_size=-1)
        return np.divide(whole["image"].numpy(), 255, dtype=np.float32), whole["label"].numpy()
    check_batch_size(batch_size, builder.info.splits[split].num_examples)
    from deepseek_hpf.data.batches_tensorflow import tensorflow_images

    return tensorflow_images(builder, split, batch_size, shuffle=split == "train", seed=seed)
