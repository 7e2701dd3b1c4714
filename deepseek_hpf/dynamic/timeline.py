"""The timeline of a run, ready to be drawn: everything by its share of the axes, 0 to 1."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from deepseek_hpf.dynamic.axes import Axis, Kind, axis_for, step_axis
from deepseek_hpf.dynamic.event_lines import EventLine, WindowLine
from deepseek_hpf.dynamic.event_wording import level_name, sentence
from deepseek_hpf.dynamic.recorded_run import RecordedRun

MOST_POINTS = 800
_EPOCHS_APART = 0.12  # their numbers take this share of a narrow screen
_APART = 0.03  # marks closer than this share of the width are one
_MOST_TOLD = 4
_PLACES = 200  # across, for what need not be told apart more finely
_MOST_LINES = 60
_WIDE = 100.0  # a loss that spans more than this factor is drawn on a logarithmic axis
_ROWS = {
    "promote": "promoted",
    "demote": "demoted",
    "phase": "new plan",
    "explore": "new plan",
    "settle": "new plan",
    "overflow": "skipped",
    "scale": "loss scale",
    "start": "resumed",
}
_LEVELS = ("base", "critical", "float32")  # from low to high
ROWS = tuple(dict.fromkeys(_ROWS.values()))


class Point(NamedTuple):
    """A point of a curve.

    Args:
        x: Across.
        y: Up; None where the value has no place on the axis.
    """

    x: float
    y: float | None


@dataclass(frozen=True)
class Curve:
    """A panel with one curve.

    Args:
        title: What it shows, with its unit.
        axis: The axis upwards.
        points: From left to right.
        lost: About where across the value was NaN or inf.
    """

    title: str
    axis: Axis
    points: tuple[Point, ...]
    lost: tuple[float, ...]

    def pieces(self) -> list[list[tuple[float, float]]]:
        """The curve, in pieces where a value has no place."""
        runs = groupby(self.points, key=lambda point: point.y is not None)
        return [[(p.x, p.y) for p in piece if p.y is not None] for drawn, piece in runs if drawn]


@dataclass(frozen=True)
class Mark:
    """An event, or several that are too close to be told apart.

    Args:
        x: Across, of the first.
        count: How many.
        text: Their words, one a line.
    """

    x: float
    count: int
    text: str


class Bar(NamedTuple):
    """Steps of a block in one precision.

    Args:
        left: Where across it begins.
        right: Where it ends.
        level: As in the file.
        text: In words.
    """

    left: float
    right: float
    level: str
    text: str


@dataclass(frozen=True)
class Timeline:
    """All that is drawn.

    Args:
        title: The model.
        subtitle: Policy, controller and steps.
        steps: The axis across.
        curves: Panels from the top down.
        marks: Name of a row to its marks; rows without any are left out.
        bars: Name of a block to its bars.
        levels: The levels of these bars, with their names.
        epochs: Where an epoch begins, and its number; of many some.
        switches: Where the precision changes; none where these are too many to show.
        skips: Where steps were skipped, likewise.
        resumes: Where the run goes on from a checkpoint.
    """

    title: str
    subtitle: str
    steps: Axis
    curves: tuple[Curve, ...]
    marks: dict[str, tuple[Mark, ...]]
    bars: dict[str, tuple[Bar, ...]]
    levels: dict[str, str]
    epochs: tuple[tuple[float, str], ...]
    switches: tuple[float, ...]
    skips: tuple[float, ...]
    resumes: tuple[float, ...]


def timeline_of(run: RecordedRun) -> Timeline:
    """Lays a run out.

    Args:
        run: The run, or a part of it.

    Returns:
        Its timeline.
    """
    steps = step_axis(run.first, run.end)
    start = run.starts[-1]
    bars = {block: _bars(run, block, steps) for block in run.blocks}
    present = {bar.level for own in bars.values() for bar in own}
    levels = [*(name for name in _LEVELS if name in present), *sorted(present - {*_LEVELS})]
    across = _across(steps)
    return Timeline(
        title=start.model,
        subtitle=f"{start.policy}, controller {start.controller}, "
        f"steps {run.first:,} to {run.end:,}",
        steps=steps,
        curves=tuple(_curves(run, across)),
        marks=_marks(run, across),
        bars=bars,
        levels={level: level_name(level, start.policy) for level in levels},
        epochs=tuple(_epochs(run.windows, across)),
        switches=_lines(across(step) for step, _ in run.plans[1:]),
        skips=_lines(across(overflow.step) for overflow in run.overflows),
        resumes=tuple(across(line.step) for line in run.starts[1:]),
    )


def _across(steps: Axis) -> Callable[[int], float]:
    return lambda step: (step - steps.low) / (steps.high - steps.low)


def _curves(run: RecordedRun, across: Callable[[int], float]) -> list[Curve]:
    losses = [window.loss for window in run.windows]
    made = [
        ("Loss", losses, _loss_axis(losses)),
        ("Loss scale (log₂)", [window.scale for window in run.windows], "log2"),
        ("Gradient norm (L2, log₁₀)", [window.gradient_norm for window in run.windows], "log10"),
    ]
    places = [across(window.step) for window in run.windows]
    return [_curve(*each, places) for each in made if any(v is not None for v in each[1])]


def _loss_axis(losses: Sequence[float | None]) -> Kind:
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    wide = bool(known) and min(known) > 0 and max(known) / min(known) > _WIDE
    return "log10" if wide else "linear"


def _curve(title: str, values: list[float | None], kind: Kind, places: list[float]) -> Curve:
    axis = axis_for(values, kind)
    known = [(x, value) for x, value in zip(places, values, strict=True) if value is not None]
    points = [Point(x, axis.at(value)) for x, value in known]
    lost = _places(x for x, value in known if not math.isfinite(value))
    named = f"{title} (log₁₀)" if kind == "log10" and "log" not in title else title
    return Curve(named, axis, tuple(_thinned(points)), lost)


def _places(shares: Iterable[float]) -> tuple[float, ...]:
    return tuple(at / _PLACES for at in sorted({round(share * _PLACES) for share in shares}))


def _lines(shares: Iterable[float]) -> tuple[float, ...]:
    """Lines from the top to the bottom, unless they would hide what is behind them."""
    exact = tuple(sorted(set(shares)))
    places = exact if len(exact) <= _MOST_LINES else _places(exact)
    return places if len(places) <= _MOST_LINES else ()


def _thinned(points: list[Point]) -> list[Point]:
    """Of many points those that show: the lowest and the highest of each group, and gaps."""
    size = math.ceil(2 * len(points) / MOST_POINTS)
    if size <= 2:
        return points
    kept: list[Point] = []
    for at in range(0, len(points), size):
        group = points[at : at + size]
        drawn = [point for point in group if point.y is not None]
        gaps = [point for point in group if point.y is None][:1]
        ends = [min(drawn, key=_height), max(drawn, key=_height)] if drawn else []
        kept += sorted({*ends, *gaps}, key=lambda point: point.x)
    return kept


def _height(point: Point) -> float:
    return point.y or 0.0


def _marks(run: RecordedRun, across: Callable[[int], float]) -> dict[str, tuple[Mark, ...]]:
    rows: dict[str, list[list[EventLine]]] = {name: [] for name in ROWS}
    for event in run.events:
        groups = rows[_ROWS[event.kind]]
        if groups and across(event.step) - across(groups[-1][0].step) < _APART:
            groups[-1].append(event)
        else:
            groups.append([event])
    return {
        name: tuple(Mark(across(g[0].step), len(g), _told(g, run)) for g in groups)
        for name, groups in rows.items()
        if groups
    }


def _told(events: list[EventLine], run: RecordedRun) -> str:
    lines = [sentence(event, run) for event in events[:_MOST_TOLD]]
    if len(events) > _MOST_TOLD:
        lines.append(f"… and {len(events) - _MOST_TOLD} more up to step {events[-1].step:,}")
    return "\n".join(lines)


def _bars(run: RecordedRun, block: str, steps: Axis) -> tuple[Bar, ...]:
    across, policy = _across(steps), run.starts[-1].policy
    return tuple(
        Bar(
            across(span.first),
            across(span.end),
            span.level,
            f"{block}: {level_name(span.level, policy)}, steps {span.first:,} to {span.end:,}",
        )
        for span in run.spans(block)
    )


def _epochs(windows: list[WindowLine], across: Callable[[int], float]) -> list[tuple[float, str]]:
    """Where epochs begin, as near as the read-outs tell, counted from 1 as Keras prints them."""
    found: list[tuple[float, str]] = []
    last = -1
    for window in windows:
        at = across(window.step)
        room = 2 * _EPOCHS_APART if at > 1 - _EPOCHS_APART else _EPOCHS_APART
        if not found:
            found.append((0.0, f"{window.epoch + 1}"))
        elif window.epoch != last and at - found[-1][0] >= room:
            found.append((at, f"{window.epoch + 1}"))
        last = window.epoch
    return found if len(found) > 1 else []
