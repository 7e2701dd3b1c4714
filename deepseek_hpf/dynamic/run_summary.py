"""What a recorded run comes to: steps, switches, skips, and the time in each precision."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from deepseek_hpf.dynamic.event_lines import WindowLine
from deepseek_hpf.dynamic.recorded_run import RecordedRun


class Stay(NamedTuple):
    """How long a block was in one precision.

    Args:
        steps: Steps.
        seconds: Time of these steps; None where no time was measured.
    """

    steps: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run in figures.

    Args:
        steps: Steps trained.
        switches: How often the precision of a block or of several at once changed.
        plans: Distinct plans that the run was in.
        decisions: Decisions of the controller.
        skipped: Skipped steps.
        resumes: How often it went on from a checkpoint.
        seconds: Time of its steps; None where none was measured.
        stays: Name of a block to a level to how long it was there.
    """

    steps: int
    switches: int
    plans: int
    decisions: int
    skipped: int
    resumes: int
    seconds: float | None
    stays: dict[str, dict[str, Stay]]

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; times are in seconds."""
        stays = {
            block: {level: stay._asdict() for level, stay in levels.items()}
            for block, levels in self.stays.items()
        }
        return {**vars(self), "stays": stays}


def summary_of(run: RecordedRun) -> RunSummary:
    """Sums up a run.

    Args:
        run: The run, or a part of it.

    Returns:
        Its summary. A block's times add up to the run's.

    Example:
        >>> from deepseek_hpf.dynamic.event_lines import StartLine
        >>> start = StartLine(
        ...     kind="start",
        ...     step=0,
        ...     model="net",
        ...     policy="mixed_float16",
        ...     controller="threshold",
        ...     blocks={"stem": ("stem",)},
        ...     precision={"stem": "base"},
        ... )
        >>> window = WindowLine(kind="window", step=50, steps=50, step_seconds=0.5)
        >>> summary_of(RecordedRun((start, window))).stays["stem"]["base"]
        Stay(steps=50, seconds=25.0)
    """
    clock = _Clock(run.windows)
    read_until = max((window.step for window in run.windows), default=0)
    unread = sum(overflow.step >= read_until for overflow in run.overflows)
    return RunSummary(
        steps=run.end - run.first,
        switches=len(run.plans) - 1,
        plans=len({tuple(sorted(precision.items())) for _, precision in run.plans}),
        decisions=len(run.decisions),
        skipped=sum(window.skipped for window in run.windows) + unread,
        resumes=sum(start.resumed for start in run.starts[1:]),
        seconds=clock.between(run.first, run.end),
        stays={block: _stays(run, block, clock) for block in run.blocks},
    )


def _stays(run: RecordedRun, block: str, clock: "_Clock") -> dict[str, Stay]:
    stays: dict[str, Stay] = {}
    for span in run.spans(block):
        before = stays.get(span.level, Stay(0, None))
        took = clock.between(span.first, span.end)
        seconds = before.seconds if took is None else (before.seconds or 0.0) + took
        stays[span.level] = Stay(before.steps + span.end - span.first, seconds)
    return stays


class _Clock:
    """Time between steps, of what the read-outs say of a step's time."""

    def __init__(self, windows: list[WindowLine]):
        timed = [w for w in windows if w.steps and w.step_seconds is not None]
        self._ends = [window.step for window in timed]
        self._steps = [window.steps for window in timed]
        self._each = [window.step_seconds or 0.0 for window in timed]
        lengths = (n * each for n, each in zip(self._steps, self._each, strict=True))
        self._sums = [0.0, *accumulate(lengths)]

    def between(self, first: int, end: int) -> float | None:
        """Seconds from a step to another; None where no time was measured at all."""
        return self._until(end) - self._until(first) if self._ends else None

    def _until(self, step: int) -> float:
        index = bisect_left(self._ends, step)
        if index == len(self._ends):
            return self._sums[-1]
        inside = step - (self._ends[index] - self._steps[index])
        return self._sums[index] + max(inside, 0) * self._each[index]
