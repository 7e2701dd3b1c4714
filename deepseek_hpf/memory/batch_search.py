"""Where to look for the largest batch that fits: pure decisions over trials that others run."""

from collections.abc import Callable
from dataclasses import dataclass, field

Attempt = Callable[[int], int | None]
"""Tries a number of rows; returns the peak in bytes, or None if it does not fit."""

_MOST_TRIALS = 12
_GROWTH = 4  # times the largest that fitted: further is no extrapolation


def multiple_below(rows: float, multiple_of: int) -> int:
    """The largest multiple that is no larger; a power of two below the first multiple.

    Args:
        rows: At least 1.
        multiple_of: What rows should be a multiple of.

    Returns:
        At least 1.

    Example:
        >>> multiple_below(30.5, 8), multiple_below(7, 8), multiple_below(1, 8)
        (24, 4, 1)
    """
    whole = int(rows)
    if whole >= multiple_of:
        return whole - whole % multiple_of
    return 1 << max(whole.bit_length() - 1, 0)


@dataclass
class BatchSearch:
    """Finds the largest batch that fits.

    Args:
        attempt: Tries a number of rows.
        budget: Bytes that a step may take.
        ceiling: Most rows.
        multiple_of: What rows should be a multiple of; smaller ones are powers of two.

    Attributes:
        peaks: Rows that fit to their peak.
        too_large: Rows that did not fit.

    Example:
        >>> search = BatchSearch(lambda rows: rows * 10 if rows <= 100 else None, 1000, 4096, 8)
        >>> search.run(guess=500)
        96
    """

    attempt: Attempt
    budget: int
    ceiling: int
    multiple_of: int
    peaks: dict[int, int] = field(default_factory=dict)
    too_large: list[int] = field(default_factory=list)

    def run(self, guess: float) -> int | None:
        """Searches.

        Args:
            guess: Rows that an estimate says would fit; at least 1.

        Returns:
            Rows that fit, so that the next multiple did not, or promises not to, or is beyond the
            ceiling; None if not even one row fits.
        """
        rows: int | None = multiple_below(min(max(guess, 1), self.ceiling), self.multiple_of)
        for _ in range(_MOST_TRIALS):
            if rows is None:
                break
            peak = self.attempt(rows)
            if peak is None:
                self.too_large.append(rows)
            else:
                self.peaks[rows] = peak
            rows = self._next()
        return max(self.peaks, default=None)

    def _next(self) -> int | None:
        high = min(self.too_large, default=self.ceiling + 1)
        if not self.peaks:
            return multiple_below(high / 2, self.multiple_of) if high > 1 else None
        low = max(self.peaks)
        wanted = low + (self.budget - self.peaks[low]) / self._slope()
        if self.too_large:  # the straight line was wrong once: between the two
            wanted = min(wanted, (low + high) / 2)
        rows = multiple_below(min(wanted, _GROWTH * low, high - 1), self.multiple_of)
        return rows if low < rows < high else None

    def _slope(self) -> float:
        """Bytes a row."""
        rows = sorted(self.peaks)
        low = rows[-1]
        if len(rows) > 1 and self.peaks[low] > self.peaks[rows[-2]]:
            return (self.peaks[low] - self.peaks[rows[-2]]) / (low - rows[-2])
        return max(self.peaks[low] / low, 1.0)


def doubling(first: int, ceiling: int) -> list[int]:
    """Numbers of rows, each twice the one before.

    Args:
        first: The first.
        ceiling: No larger ones.

    Returns:
        At least the first.

    Example:
        >>> doubling(8, 70)
        [8, 16, 32, 64]
    """
    rows = [first]
    while 2 * rows[-1] <= ceiling:
        rows.append(2 * rows[-1])
    return rows
