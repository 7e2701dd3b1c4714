"""Times of several ways to do the same work, taken in turns, so that what else runs hits all."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles, in the unit of what was measured.

    Args:
        median: Half of the values are below it.
        low: A quarter of the values are below it.
        high: A quarter of the values are above it.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarizes values.

        Args:
            values: At least one.

        Returns:
            The summary; of a single value, three times that value.
        """
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timings:
    """Seconds a call of every candidate, round by round.

    Args:
        seconds: Name to its times, one a round; all have the same number.

    Example:
        >>> from deepseek_hpf.timing import Timings
        >>> timings = Timings({"slow": [2.0, 4.0, 2.2], "fast": [1.0, 2.0, 1.0]})
        >>> timings.speedup("fast", over="slow").median
        2.0
    """

    seconds: Mapping[str, Sequence[float]]

    def spread(self, name: str) -> Spread:
        """Seconds a call.

        Args:
            name: A candidate.

        Returns:
            Median and quartiles over the rounds.
        """
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, *, over: str) -> Spread:
        """How many times as fast one candidate is as another, from the ratio within each round.

        Ratios of times taken side by side stay true on a machine whose speed changes meanwhile;
        the ratio of two medians does not.

        Args:
            name: The candidate.
            over: What it is compared with.

        Returns:
            Median and quartiles of the ratios; above 1 where `name` is faster.
        """
        pairs = zip(self.seconds[over], self.seconds[name], strict=True)
        return Spread.of([other / own for other, own in pairs])


def time_in_turns(
    candidates: Mapping[str, Work],
    *,
    rounds: int,
    calls: int = 1,
    warm_up: int = 1,
    deadline: float | None = None,
    prepare: Callable[[str], object] = lambda name: None,
) -> Timings:
    """Times candidates round by round; each round takes them in another order.

    Args:
        candidates: Name to work. The work has to wait for its own end: asynchronous devices have
            to be drained before it returns.
        rounds: How often each is timed. At least 1.
        calls: Calls in one timing; their mean counts.
        warm_up: Calls of each before the first round, not timed.
        deadline: Value of `time.monotonic()` after which no further round begins. The first round
            is always completed.
        prepare: Called with a name before each of its turns, outside the time.

    Returns:
        Seconds a call.
    """
    for name, work in candidates.items():
        prepare(name)
        for _ in range(warm_up):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for order in _orders(list(candidates), rounds):
        for name in order:
            prepare(name)
            seconds[name].append(_time(candidates[name], calls))
        if deadline is not None and time.monotonic() >= deadline:
            break
    return Timings(seconds)


def _orders(names: list[str], rounds: int) -> Iterator[list[str]]:
    """Rotations, every other one reversed: who follows whom changes from round to round."""
    for index in range(rounds):
        shift = index // 2 % max(len(names), 1)
        order = names[shift:] + names[:shift]
        yield order[::-1] if index % 2 else order


def _time(work: Work, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls
