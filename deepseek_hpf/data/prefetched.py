"""`PrefetchedData`: what Keras reads of data that is made ready ahead."""

import itertools
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import keras
from keras.src.trainers.data_adapters.data_adapter import DataAdapter  # has no public access

from deepseek_hpf.data.read_ahead import ReadAhead, Source

KEPT = 2  # batches of a generator with which Keras begins each time


class PrefetchedData(DataAdapter):
    """Batches of another reader, ready on the device ahead of the step that takes them.

    `data.prefetch` makes it. Keras takes it as `x`; it can be iterated too.

    Args:
        source_adapter: Keras's reader of the data.
        placing: Casts and copies, for the back end at hand.
        dtype: Name of the dtype of floating inputs; None leaves them.
        depth: Batches that are ready at most.
        one_shot: Whether the data can be read once only, as a generator.
    """

    def __init__(
        self,
        source_adapter: Any,
        placing: ModuleType,
        dtype: str | None,
        depth: int,
        *,
        one_shot: bool = False,
    ):
        self.source_adapter = source_adapter
        self._placing = placing
        self._dtype = dtype
        self._depth = depth
        self._running: weakref.WeakSet[ReadAhead] = weakref.WeakSet()
        self._one_shot = one_shot
        self._first: list[Any] = []
        self._only: ReadAhead | None = None

    def __iter__(self) -> Iterator[Any]:
        """Batches from the start, on the device."""
        if keras.backend.backend() == "tensorflow":
            return iter(self.get_tf_dataset())
        return self._placed(self.source_adapter.get_numpy_iterator)

    def __len__(self) -> int:
        """Batches an epoch.

        Raises:
            TypeError: The data does not tell.
        """
        if self.num_batches is None:
            raise TypeError("The number of batches is not known: the data does not tell it.")
        return int(self.num_batches)

    def get_numpy_iterator(self) -> Iterator[Any]:
        """Batches as arrays on the host, as they are."""
        return self._ahead(lambda: iter(self.source_adapter.get_numpy_iterator()))

    def get_jax_iterator(self) -> Iterator[Any]:
        """Batches for JAX."""
        return self._placed(self.source_adapter.get_jax_iterator)

    def get_torch_dataloader(self) -> Iterator[Any]:
        """Batches for PyTorch. Keras only iterates over it."""
        return self._placed(self.source_adapter.get_torch_dataloader)

    def get_tf_dataset(self) -> Any:
        """Batches for TensorFlow."""
        return self._placing.ahead(self.source_adapter.get_tf_dataset(), self._dtype, self._depth)

    def _placed(self, batches: Any) -> Iterator[Any]:
        place = self._placing.placing(self._dtype)

        def source() -> Iterator[Any]:
            return map(place, batches())

        found = self._from_the_only(source) if self._one_shot else self._ahead(source)
        return (ready() for ready in found)

    def _from_the_only(self, source: Source) -> Iterator[Any]:
        """What was read ahead is not read again: all iterators go on with it.

        They begin with the first batches, as those of Keras's reader of generators do: `fit` takes
        one to build a model, and begins anew.
        """
        if self._only is None:
            self._only = self._ahead(source)
        for index in range(KEPT):
            if index == len(self._first):
                self._first += itertools.islice(self._only, 1)
            yield from self._first[index : index + 1]
        yield from self._only

    def _ahead(self, source: Source) -> ReadAhead:
        ahead = ReadAhead(source, self._depth)
        self._running.add(ahead)
        return ahead

    @property
    def num_batches(self) -> int | None:
        """Batches an epoch, None if unknown."""
        return self.source_adapter.num_batches

    @property
    def batch_size(self) -> int | None:
        """Examples a batch, None if unknown."""
        return self.source_adapter.batch_size

    @property
    def has_partial_batch(self) -> bool | None:
        """Whether the last batch of an epoch is smaller."""
        return self.source_adapter.has_partial_batch

    @property
    def partial_batch_size(self) -> int | None:
        """Examples of that batch."""
        return self.source_adapter.partial_batch_size

    def on_epoch_begin(self) -> None:
        """Tells the data that an epoch begins."""
        self.source_adapter.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tells the data that an epoch has ended, once nothing is read any more."""
        for ahead in list(self._running):
            ahead.settle()
        self.source_adapter.on_epoch_end()
