"""The picture of a run's timeline."""

import io
from typing import Any

from deepseek_hpf.dynamic import timeline_looks as looks
from deepseek_hpf.dynamic.timeline import Curve, Timeline
from deepseek_hpf.extras import import_extra

_WIDTH, _DOTS_PER_INCH = 11.0, 150
_HEAD, _ROW, _PANEL, _BLOCK = 1.3, 0.24, 1.35, 0.32  # inches
_LINE = 38  # characters of a block's name
_TALLEST = 60.0


def draw_timeline(timeline: Timeline) -> bytes:
    """Draws a timeline: marks, loss, loss scale, gradient norm, and the precision of each block.

    Args:
        timeline: The timeline.

    Returns:
        A PNG file.

    Raises:
        ConfigError: matplotlib, of the extra `report`, is not installed.
    """
    figures = import_extra("matplotlib.figure", "report")
    heights = [
        _ROW * max(len(timeline.marks), 1),
        *[_PANEL] * len(timeline.curves),
        _BLOCK * max(len(timeline.bars), 1),
    ]
    size = (_WIDTH, min(_HEAD + sum(heights) + 0.3 * len(heights), _TALLEST))
    figure = figures.Figure(size, dpi=_DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    _draw_marks(panels[0], timeline)
    for axes, curve in zip(panels[1:-1], timeline.curves, strict=True):
        _draw_curve(axes, curve, timeline)
    for axes in panels:
        _dress(axes)
    _draw_bars(panels[-1], timeline)
    panels[-1].set_xticks(
        [t.at for t in timeline.steps.ticks], [t.label for t in timeline.steps.ticks]
    )
    panels[-1].set_xlim(-0.005, 1.005)
    panels[-1].set_xlabel("Step")
    figure.suptitle(f"{timeline.title}\n{timeline.subtitle}", fontsize=11, parse_math=False)
    _legend(figure, timeline)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_marks(axes: Any, timeline: Timeline) -> None:
    names = list(timeline.marks)
    for row, name in enumerate(names):
        shape = looks.SHAPES[name]
        places = [mark.x for mark in timeline.marks[name]]
        axes.scatter(
            places, [row] * len(places), s=42, marker=shape.marker, color=shape.colour.light,
            linewidths=0, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    if not names:
        _say_none(axes)
    for left, label in timeline.epochs:
        text = f"epoch {label}" if left == 0 else label
        axes.annotate(
            text, (left, 1), (2, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8, color=looks.QUIET.light,
        )  # fmt: skip
    _verticals(axes, timeline)


def _draw_curve(axes: Any, curve: Curve, timeline: Timeline) -> None:
    for piece in curve.pieces():
        marker = "." if len(piece) == 1 else ""
        xs, ys = zip(*piece, strict=True)
        axes.plot(xs, ys, color=looks.TEXT.light, linewidth=1.2, marker=marker, zorder=3)
    if curve.lost:
        axes.scatter(
            curve.lost, [1.0] * len(curve.lost), s=22, marker="x", color=looks.SKIP.light,
            clip_on=False, zorder=4,
        )  # fmt: skip
        told = "× not finite"  # noqa: RUF001
        axes.set_title(told, loc="right", fontsize=8, color=looks.SKIP.light)
    ticks = curve.axis.ticks
    axes.set_yticks([tick.at for tick in ticks], [tick.label for tick in ticks])
    axes.set_ylim(0, 1)
    axes.set_title(curve.title, loc="left", fontsize=9)
    axes.grid(axis="y", color=looks.GRID.light, linewidth=0.6)
    _verticals(axes, timeline)


def _draw_bars(axes: Any, timeline: Timeline) -> None:
    colours = looks.level_colours(timeline.levels)
    for row, bars in enumerate(timeline.bars.values()):
        if bars:
            whole = (bars[0].left, bars[-1].right - bars[0].left)
            outline = {"facecolor": "none", "edgecolor": looks.QUIET.light, "linewidth": 0.8}
            axes.broken_barh([whole], (row - 0.4, 0.8), zorder=3, **outline)
        for level, filled in colours.items():
            ranges = [(b.left, b.right - b.left) for b in bars if b.level == level]
            axes.broken_barh(ranges, (row - 0.4, 0.8), **_filled(*filled))
    names = _names(timeline)
    if not names:
        _say_none(axes)
    axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=7, linespacing=0.95)
    axes.set_ylim(max(len(timeline.bars), 1) - 0.5, -0.5)
    axes.set_title("Precision of each block", loc="left", fontsize=9)


def _verticals(axes: Any, timeline: Timeline) -> None:
    for x in timeline.switches:
        axes.axvline(x, color=looks.SWITCH.light, linewidth=0.7, alpha=0.45)
    for x in timeline.skips:
        axes.axvline(x, color=looks.SKIP.light, linewidth=0.7, alpha=0.55, linestyle=":")
    for x in timeline.resumes:
        axes.axvline(x, color=looks.QUIET.light, linewidth=0.9, linestyle="--")
    for x, _ in timeline.epochs:
        axes.axvline(x, color=looks.GRID.light, linewidth=0.8)


def _legend(figure: Any, timeline: Timeline) -> None:
    patches = import_extra("matplotlib.patches", "report")
    lines = import_extra("matplotlib.lines", "report")
    colours = looks.level_colours(timeline.levels)
    shown = [
        patches.Patch(label=name, **_filled(*colours[level]))
        for level, name in timeline.levels.items()
    ]
    if timeline.switches:
        shown.append(lines.Line2D([], [], color=looks.SWITCH.light, alpha=0.6, label="switch"))
    if timeline.skips:
        shown.append(
            lines.Line2D([], [], color=looks.SKIP.light, linestyle=":", label="skipped step")
        )
    if timeline.resumes:
        shown.append(lines.Line2D([], [], color=looks.QUIET.light, linestyle="--", label="resumed"))
    if shown:
        figure.legend(handles=shown, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _say_none(axes: Any) -> None:
    axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", fontsize=8)


def _filled(ground: looks.Colour, stripes: looks.Colour) -> dict[str, Any]:
    if ground == stripes:
        return {"facecolor": ground.light, "linewidth": 0}
    return {
        "facecolor": ground.light,
        "edgecolor": stripes.light,
        "hatch": "/////",
        "linewidth": 0,
    }


def _dress(axes: Any) -> None:
    axes.tick_params(labelsize=8, length=0, labelcolor=looks.TEXT.light)
    for spine in axes.spines.values():
        spine.set_color(looks.GRID.light)


def _names(timeline: Timeline) -> list[str]:
    """Names of the blocks in two lines, each told from the others."""
    names = [_in_two_lines(name) for name in timeline.bars]
    return [
        name if names.count(name) == 1 else f"{number}: {name}"
        for number, name in enumerate(names, start=1)
    ]


def _in_two_lines(name: str) -> str:
    if len(name) <= _LINE:
        return name
    if len(name) > 2 * _LINE:
        name = f"{name[: _LINE - 1]}…{name[-_LINE:]}"
    breaks = [at + 1 for at, sign in enumerate(name) if sign in "/.… "]
    fitting = [at for at in breaks if at <= _LINE and len(name) - at <= _LINE]
    middle = len(name) // 2
    at = min(fitting, key=lambda at: abs(at - middle), default=min(_LINE, len(name) - 1))
    return f"{name[:at]}\n{name[at:]}"
