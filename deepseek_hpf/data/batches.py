"""Batches of arrays in memory, in what the Keras back end at hand reads best."""

import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from deepseek_hpf.errors import ConfigError

Arrays = tuple[NDArray[Any], NDArray[Any]]
"""Examples and what they are to give, row by row."""


def make_batches(arrays: Arrays, batch_size: int, *, shuffle: bool, seed: int) -> Any:
    """Returns batches for `model.fit`: a `tf.data.Dataset` on TensorFlow, else `ArrayBatches`.

    Args:
        arrays: Inputs such as images `(count, height, width, channels)`, and labels `(count, ...)`.
        batch_size: Examples a batch.
        shuffle: For training: a new order every epoch, and only full batches, so that a step is
            compiled once and no small batch upsets batch normalization.
        seed: Of the order; the same seed gives the same sequence of orders.

    Returns:
        Batches `(inputs, labels)`.

    Raises:
        ConfigError: The batch size is no positive integer, or larger than the training set.
    """
    check_batch_size(batch_size, len(arrays[1]) if shuffle else None)
    if keras.backend.backend() == "tensorflow":
        from deepseek_hpf.data.batches_tensorflow import tensorflow_batches

        return tensorflow_batches(arrays, batch_size, shuffle=shuffle, seed=seed)
    return ArrayBatches(arrays, batch_size, shuffle=shuffle, seed=seed)


def check_batch_size(batch_size: int, count: int | None = None) -> None:
    """Raises `ConfigError` unless `1 <= batch_size <= count` (examples; no upper limit if None)."""
    is_integer = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if not is_integer or batch_size < 1 or (count is not None and batch_size > count):
        limit = (
            "at least 1" if count is None else f"between 1 and {count}, the examples in the split"
        )
        raise ConfigError(
            f"`batch_size` must be an integer {limit}. Received: batch_size={batch_size!r}"
        )


class ArrayBatches(keras.utils.PyDataset):
    """Batches of arrays, shuffled anew each epoch by `(seed, epoch)` alone.

    Args:
        arrays: Inputs and labels.
        batch_size: Examples a batch.
        shuffle: Whether to shuffle and to leave out the last, smaller batch.
        seed: Of the order.

    Example:
        >>> import numpy as np
        >>> arrays = np.zeros((5, 8, 8, 1), "float32"), np.arange(5)
        >>> batches = ArrayBatches(arrays, 2, shuffle=False, seed=0)
        >>> len(batches), batches[2][1].tolist()
        (3, [4])
    """

    def __init__(self, arrays: Arrays, batch_size: int, *, shuffle: bool, seed: int):
        super().__init__()
        self._inputs, self._labels = arrays
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._epoch = 0
        self._order = self._make_order()

    def __len__(self) -> int:
        """Batches an epoch."""
        whole = len(self._labels) / self._batch_size
        return math.floor(whole) if self._shuffle else math.ceil(whole)

    def __getitem__(self, index: int) -> Arrays:
        """Returns one batch."""
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return self._inputs[chosen], self._labels[chosen]

    def on_epoch_end(self) -> None:
        """Draws the next epoch's order; Keras calls it."""
        self._epoch += 1
        self._order = self._make_order()

    def _make_order(self) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self._labels))
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._labels))
