"""A run as its event file tells of it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

from deepseek_hpf.dynamic.event_lines import (
    DecisionLine,
    EventLine,
    OverflowLine,
    StartLine,
    WindowLine,
)
from deepseek_hpf.errors import ConfigError

Line = TypeVar("Line", bound=EventLine)


class Span(NamedTuple):
    """Steps that a block spent in one precision.

    Args:
        level: `"base"`, `"critical"`, `"float32"`, or the name of a policy.
        first: The first step.
        end: The first step after it.
    """

    level: str
    first: int
    end: int


@dataclass(frozen=True)
class RecordedRun:
    """What happened in a run.

    Args:
        lines: In their order; the first is a start.
        notes: What was passed over in the file, in sentences.
        stop: The number of steps trained, where the lines do not say it.
    """

    lines: tuple[EventLine, ...]
    notes: tuple[str, ...] = ()
    stop: int = 0

    @cached_property
    def starts(self) -> list[StartLine]:
        """The begin of the run, and each time that it went on."""
        return self._of(StartLine)

    @cached_property
    def windows(self) -> list[WindowLine]:
        """Its read-outs."""
        return self._of(WindowLine)

    @cached_property
    def decisions(self) -> list[DecisionLine]:
        """What its controller decided."""
        return self._of(DecisionLine)

    @cached_property
    def overflows(self) -> list[OverflowLine]:
        """Its skipped steps, as far as their cause was looked for."""
        return self._of(OverflowLine)

    @cached_property
    def events(self) -> list[EventLine]:
        """All but the read-outs and the first start, by their steps."""
        events = (line for line in self.lines[1:] if not isinstance(line, WindowLine))
        return sorted(events, key=lambda line: line.step)

    @cached_property
    def first(self) -> int:
        """Its first step."""
        return self.starts[0].step

    @cached_property
    def end(self) -> int:
        """The number of steps trained so far."""
        return max(self.stop, *map(_steps_done, self.lines))

    @cached_property
    def blocks(self) -> list[str]:
        """Names of the blocks, in the order of the model."""
        return list(dict.fromkeys(name for start in self.starts for name in start.blocks))

    @cached_property
    def plans(self) -> list[tuple[int, dict[str, str]]]:
        """The precision of all blocks from a step on, at the start and whenever it changed."""
        found: list[tuple[int, dict[str, str]]] = []
        for line in self.lines:
            if isinstance(line, StartLine | DecisionLine):
                if found and found[-1][0] == line.step:  # several decisions of one look
                    found.pop()
                if not found or found[-1][1] != line.precision:
                    found.append((line.step, line.precision))
        return found

    def spans(self, block: str) -> list[Span]:
        """The precision of a block over time.

        Args:
            block: Its name.

        Returns:
            Spans of which no two neighbours are alike; none where the run has no steps yet.
        """
        ends = [step for step, _ in self.plans[1:]] + [self.end]
        spans: list[Span] = []
        for (first, precision), end in zip(self.plans, ends, strict=True):
            level = precision.get(block)
            if level is None or first >= end:
                continue
            if spans and spans[-1].level == level and spans[-1].end == first:
                first = spans.pop().first
            spans.append(Span(level, first, end))
        return spans

    def between(self, first: int | None, end: int | None) -> "RecordedRun":
        """Cuts out a part of the run.

        Args:
            first: The first step; None for the begin.
            end: The first step after it; None for the end.

        Returns:
            The part. It starts in the precision that holds at its first step.

        Raises:
            ConfigError: The run has none of these steps.
        """
        if first is None and end is None:
            return self
        begin = self.first if first is None else max(first, self.first)
        stop = self.end if end is None else min(end, self.end)
        if begin >= stop:
            raise ConfigError(
                f"expected a range of the run's steps, which are {self.first} to {self.end}. "
                f"Received: {'' if first is None else first}:{'' if end is None else end}."
            )
        start = [line for line in self.starts if line.step <= begin][-1]
        holding = [precision for step, precision in self.plans if step <= begin][-1]
        inside = (line for line in self.lines if self._is_inside(line, begin, stop))
        started = start.model_copy(update={"step": begin, "precision": holding})
        return RecordedRun((started, *inside), self.notes, stop)

    def _is_inside(self, line: EventLine, begin: int, stop: int) -> bool:
        if isinstance(line, WindowLine):
            return begin < line.step <= stop
        if isinstance(line, StartLine):
            return begin < line.step < stop
        # What the last look decided holds from the end of the run on.
        return begin <= line.step < stop or line.step == stop == self.end

    def _of(self, kind: type[Line]) -> list[Line]:
        return [line for line in self.lines if isinstance(line, kind)]


def _steps_done(line: EventLine) -> int:
    return line.step + 1 if isinstance(line, OverflowLine) else line.step
