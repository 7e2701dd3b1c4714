"""How many bytes are alive at once while operations run one after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """An operation and the buffers that it touches, which are numbered.

    Args:
        reads: Buffers that it needs.
        writes: Buffers that it makes, with their bytes.
        temporary: Bytes that it needs while it runs, and gives back.
        takes_over: Whether it may write its result into an input of the same size that nobody needs
            after it.
    """

    reads: tuple[int, ...]
    writes: tuple[tuple[int, int], ...]
    temporary: int = 0
    takes_over: bool = False


def peak_bytes(works: Sequence[Work], results: Iterable[int] = ()) -> int:
    """Returns the most bytes that are alive at once.

    A buffer lives from the operation that makes it to the last one that reads it. What is read and
    made by none, such as a variable, was there before and is not counted.

    Args:
        works: In the order in which they run.
        results: Buffers that live on to the end.

    Returns:
        Bytes.

    Example:
        >>> square, add = Work((0,), ((1, 100),)), Work((1, 0), ((2, 100),))
        >>> peak_bytes([square, add])
        200
        >>> peak_bytes([square, Work((1, 0), ((2, 100),), takes_over=True)])
        100
    """
    last = {buffer: len(works) for buffer in results}
    for index, work in enumerate(works):
        for buffer in work.reads:
            last[buffer] = max(index, last.get(buffer, index))
    alive: dict[int, int] = {}
    now = peak = 0
    for index, work in enumerate(works):
        dying = {b: alive[b] for b in work.reads if last.get(b) == index and b in alive}
        made = sum(size for _, size in work.writes)
        reused = _reused(work, dying)
        peak = max(peak, now - reused + made + work.temporary)
        alive.update(work.writes)
        dying |= {b: size for b, size in work.writes if last.get(b, -1) <= index}
        now += made - sum(dying.values())
        for buffer in dying:
            del alive[buffer]
    return peak


def _reused(work: Work, dying: dict[int, int]) -> int:
    if not work.takes_over or len(work.writes) != 1:
        return 0
    size = work.writes[0][1]
    return size if size in dying.values() else 0
