"""Batches for `fit` whose size may change from one epoch to the next."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from deepseek_hpf.errors import ConfigError


class ResizableBatches(keras.utils.PyDataset):
    """Arrays in batches of `batch_size`, which may be set between epochs.

    `fit` fixes the size of batches that it cuts from arrays itself; of these it asks for one after
    the other. The rows of each are drawn anew in each epoch, and depend on the seed and the epoch
    alone. Unless it is given `shuffle=False`, `fit` also takes the batches in an order of its own,
    by Python's generator.

    Args:
        x: Inputs: an array or a structure of arrays, all with the same number of rows.
        y: Targets, likewise.
        sample_weight: Weights, likewise; None for none.
        batch_size: Rows of a batch; the last one of an epoch may have fewer.
        shuffle: Whether the rows are shuffled.
        seed: Of the order.

    Attributes:
        batch_size: As above; may be set.
        epoch: The next epoch, which decides on the order; counted on, and may be set.

    Raises:
        ConfigError: The arrays have no rows, or not the same number; or the size is none.

    Example:
        >>> from deepseek_hpf.memory import ResizableBatches
        >>> batches = ResizableBatches(np.arange(10), np.arange(10), batch_size=4, shuffle=False)
        >>> batches.num_batches, batches[2][0].tolist()
        (3, [8, 9])
        >>> batches.batch_size = 5
        >>> batches.num_batches
        2
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        parts = (x, y) if sample_weight is None else (x, y, sample_weight)
        self._parts = keras.tree.map_structure(np.asarray, parts)
        rows = {len(array) if array.ndim else 0 for array in keras.tree.flatten(self._parts)}
        if len(rows) != 1 or 0 in rows:
            raise ConfigError(
                f"Expected arrays of the same number of rows. Received: {sorted(rows)}"
            )
        self.rows = rows.pop()
        self.batch_size = _checked(batch_size)
        self.epoch = 0
        self._shuffle = shuffle
        self._seed = seed
        self._order = np.arange(self.rows)

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.rows / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Returns a batch.

        Args:
            index: Its place in the epoch.

        Returns:
            `(x, y)` or `(x, y, sample_weight)`.
        """
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        batch: tuple[Any, ...] = keras.tree.map_structure(lambda a: a[chosen], self._parts)
        return batch

    def on_epoch_begin(self) -> None:
        """Draws the order of the epoch."""
        if self._shuffle:
            self._order = np.random.default_rng((self._seed, self.epoch)).permutation(self.rows)
        self.epoch += 1


class RemadeBatches(keras.utils.PyDataset):
    """Batches of a pipeline that is made anew for each epoch, with the size that is wanted then.

    They come in the pipeline's order, whatever index is asked for.

    Args:
        make: Given a batch size, returns what yields the batches of one epoch, `(x, y)` or `(x, y,
            sample_weight)`, e.g. a `tf.data.Dataset` or a PyTorch `DataLoader`.
        rows: Of an epoch.
        batch_size: Rows of a batch; the last one may have fewer.

    Attributes:
        batch_size: As above; may be set between epochs.

    Raises:
        ConfigError: The size is none.

    Example:
        >>> from deepseek_hpf.memory import RemadeBatches
        >>> def make(size):
        ...     return ((np.ones((size, 2)), np.ones(size)) for _ in range(12 // size))
        >>> batches = RemadeBatches(make, rows=12, batch_size=4)
        >>> batches.num_batches, batches[0][0].shape
        (3, (4, 2))
    """

    def __init__(self, make: Callable[[int], Iterable[Any]], *, rows: int, batch_size: int):
        super().__init__()
        self._make = make
        self.rows = rows
        self.batch_size = _checked(batch_size)
        self._batches: Iterator[Any] | None = None

    @property
    def num_batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.rows / self.batch_size)

    def on_epoch_begin(self) -> None:
        """Has the pipeline made anew."""
        self._batches = None

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Returns the next batch.

        Args:
            index: Not used.

        Returns:
            The batch, of NumPy arrays.

        Raises:
            ConfigError: The pipeline has fewer batches than `rows` says.
        """
        if self._batches is None:
            self._batches = iter(self._make(self.batch_size))
        try:
            batch = next(self._batches)
        except StopIteration:
            raise ConfigError(
                f"Expected {self.num_batches} batches of {self.batch_size}, as of {self.rows} "
                f"rows, in each epoch. Received fewer from {self._make!r}. Give `rows` what an "
                "epoch has."
            ) from None
        found: tuple[Any, ...] = keras.tree.map_structure(keras.ops.convert_to_numpy, tuple(batch))
        return found


def _checked(batch_size: Any) -> int:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigError(
            f"Expected `batch_size` to be a number of rows, 1 or more. Received: {batch_size!r}"
        )
    return batch_size
