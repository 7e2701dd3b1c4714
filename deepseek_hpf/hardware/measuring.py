"""The measuring of one workload: a fitting size, the formats in turns, the slow ones stopped."""

import math
import time
from collections.abc import Callable, Sequence

from deepseek_hpf.errors import told
from deepseek_hpf.hardware.throughput import NO_TIME, Figure
from deepseek_hpf.hardware.workloads import Workload
from deepseek_hpf.timing import Work, time_in_turns

ROUNDS = 7
SECONDS_IN_TURNS = 0.7
# Seconds of a work; one that takes less is mostly the call itself.
LONG_ENOUGH = 0.004
# Seconds of a work; one that is expected to take more is not tried, one that takes more than half
# is not repeated.
TOO_LONG = 1.0
SECONDS_FOR_FIRST = 0.1
_MOST_FIRST = 20


def measure(
    workload: Workload,
    dtypes: Sequence[str],
    first: int,
    until: float,
    say: Callable[[str], object],
) -> dict[str, Figure]:
    """Measures the formats at one workload.

    Args:
        workload: The work.
        dtypes: Names of the formats. The first that can do the work decides how large it is.
        first: Index of the size to begin with.
        until: Value of `time.monotonic()` after which nothing more is begun.
        say: Is told what is being measured.

    Returns:
        Name of the format to its figure.
    """
    measurement = _Measurement(workload, first, until)
    for dtype in dtypes:
        if workload.name == "cast" and dtype == "float32":
            measurement.figures[dtype] = Figure(None, "nothing to convert")
        elif time.monotonic() >= until:
            measurement.figures[dtype] = Figure(None, NO_TIME)
        else:
            say(f"{workload.name}, {dtype}")
            measurement.begin(dtype)
    measurement.time_in_turns()
    return {dtype: measurement.figures[dtype] for dtype in dtypes}


class _Measurement:
    """One workload while it is measured.

    The first format that can do the work decides how large it is for all.
    """

    def __init__(self, workload: Workload, first: int, until: float):
        self.workload, self.until = workload, until
        self.first, self.last = first, len(workload.sizes) - 1
        self.figures: dict[str, Figure] = {}
        self.works: dict[str, Work] = {}
        self.chosen: int | None = None

    def begin(self, dtype: str) -> None:
        """Prepares a format's turns, or makes its figure where there are none."""
        try:
            index, seconds, work = self._climb(dtype)
        except Exception as error:  # noqa: BLE001 - no kernel, no memory: the others go on
            self.figures[dtype] = Figure(None, told(error))
            return
        if self.chosen is None:
            self.chosen = index
        if index == self.chosen and (seconds <= TOO_LONG / 2 or not self.works):
            self.works[dtype] = work
        else:
            note = "" if index == self.chosen else "stopped: larger works would take too long"
            self.figures[dtype] = Figure(self._amount(dtype, index) / seconds, note)

    def time_in_turns(self) -> None:
        """Times what was prepared."""
        if self.chosen is None or not self.works:
            return
        end = min(self.until, time.monotonic() + SECONDS_IN_TURNS)
        timings = time_in_turns(self.works, rounds=ROUNDS, warm_up=0, deadline=end)
        for dtype, seconds in timings.seconds.items():
            # The best: what else runs on the machine only adds to a time.
            self.figures[dtype] = Figure(self._amount(dtype, self.chosen) / min(seconds))

    def _climb(self, dtype: str) -> tuple[int, float, Work]:
        """Goes from small works to larger ones.

        Small steps are taken only where a large one might last: a format without kernels may be a
        thousand times slower, and a busy machine may make a small work look so.

        Returns:
            Index of the largest size that was tried, seconds of its work, and the work.
        """
        index: int | None = self.first
        while index is not None:
            reached, work = index, self.workload.prepare(dtype, self.workload.sizes[index])
            seconds = _first_seconds(work)
            index = self._next(dtype, reached, seconds)
        return reached, seconds, work

    def _next(self, dtype: str, index: int, seconds: float) -> int | None:
        """The size to try after one that took so long; None to stay."""
        end = self.last if self.chosen is None else self.chosen
        if index == end or time.monotonic() >= self.until:
            return None
        rate = self._amount(dtype, index) / seconds
        waits = {i: self._amount(dtype, i) / rate for i in range(index + 1, end + 1)}
        able = [i for i, wait in waits.items() if wait <= TOO_LONG]
        if self.chosen is None:
            # The smallest work may only look long: it is never what is measured.
            if seconds >= LONG_ENOUGH and index > self.first:
                return None
            return next((i for i in able if waits[i] >= LONG_ENOUGH), able[-1] if able else None)
        if able:
            return able[-1]
        # On a busy machine threads wait for each other, longer than they work: one step more tells
        # that from a slow format.
        return index + 1 if seconds <= TOO_LONG / 4 else None

    def _amount(self, dtype: str, index: int) -> float:
        return self.workload.amount(dtype, self.workload.sizes[index])


def _first_seconds(work: Work) -> float:
    """Seconds of a work after the one that compiles it: the best of some, of one if it is slow."""
    work()
    best, end = math.inf, time.perf_counter() + SECONDS_FOR_FIRST
    for _ in range(_MOST_FIRST):
        start = time.perf_counter()
        work()
        done = time.perf_counter()
        best = min(best, done - start)
        if done >= end:
            break
    return best
