"""Reads an iterator in a thread of its own, some items ahead of who takes them."""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

Source = Callable[[], Iterator[Any]]


class ReadAhead(Iterator[Any]):
    """An iterator whose items are made ready by a thread while the present one is used.

    The thread starts with the first item that is asked for, so that an iterator which nobody reads
    draws nothing. Items keep their order. An exception of the source is raised in the place of the
    item that it came instead of. The thread ends with the source, with `close`, and when nobody
    holds the iterator any more.

    Args:
        source: Makes the iterator to read. It is called, read and closed in the thread.
        depth: Items that are ready at most; the next is read once there is room. At least 1.

    Example:
        >>> from deepseek_hpf.data.read_ahead import ReadAhead
        >>> list(ReadAhead(lambda: iter("abc"), depth=2))
        ['a', 'b', 'c']
    """

    def __init__(self, source: Source, depth: int):
        self._shelf = _Shelf(depth)
        # The thread must not hold this object, or it would never be let go.
        self._thread = threading.Thread(
            target=_fill, args=(source, self._shelf), name="deepseek_hpf-read-ahead", daemon=True
        )
        self._end = weakref.finalize(self, self._shelf.close)

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> Any:
        if self._thread.ident is None and self._end.alive:
            self._thread.start()
        return self._shelf.take()

    def settle(self) -> None:
        """Waits until the thread has read all that it will read before the next item is taken.

        How far the source was read is then known, whatever the speed of the thread.
        """
        if self._thread.ident is not None:
            self._shelf.wait_until_idle()

    def close(self) -> None:
        """Ends the thread, and waits for it. No item comes after that."""
        self._end()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()


class _Shelf:
    """What is ready, between the two threads."""

    def __init__(self, depth: int):
        self._depth = depth
        self._items: deque[Any] = deque()
        self._changed = threading.Condition()
        self._complete = False  # nothing more will be put
        self._closed = False
        self._failure: BaseException | None = None

    def put(self, item: Any) -> None:
        """Puts an item, for which there must be room."""
        with self._changed:
            if not self._closed:
                self._items.append(item)
            self._changed.notify_all()

    def wait_for_room(self) -> bool:
        """Waits until an item could be put; False if none is wanted any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            return not self._closed

    def complete(self, failure: BaseException | None) -> None:
        """Says that the source has ended, and how."""
        with self._changed:
            self._complete, self._failure = True, failure
            self._changed.notify_all()

    def take(self) -> Any:
        """Takes the next item once it is there."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._complete or self._closed)
            if self._items and not self._closed:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            failure, self._failure = self._failure, None
        if failure is not None and not self._closed:
            raise failure
        raise StopIteration

    def wait_until_idle(self) -> None:
        """Waits until nothing is read any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._complete or len(self._items) >= self._depth
            )

    def close(self) -> None:
        """Takes no more items, and gives none."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def _fill(source: Source, shelf: _Shelf) -> None:
    """The thread: from the source onto the shelf."""
    failure: BaseException | None = None
    try:
        with contextlib.closing(_closable(source())) as iterator:
            while shelf.wait_for_room():
                shelf.put(next(iterator))
    except StopIteration:
        pass
    except BaseException as error:  # noqa: BLE001 raised again where the item is asked for
        failure = error
    finally:
        shelf.complete(failure)


def _closable(iterator: Iterator[Any]) -> Any:
    """The iterator itself if it is a generator, else one around it."""
    return iterator if hasattr(iterator, "close") else (item for item in iterator)
