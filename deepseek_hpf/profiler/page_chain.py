"""The model as a chain of layers, laid out for drawing: boxes, edges, and casts on the edges."""

from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_hpf.profiler.findings import Edge, LayerRow
from deepseek_hpf.profiler.report import ProfileReport

ROW, BOX, LEFT, WIDTH = 54, 30, 76, 340
_LONGEST = 34
_DEPTH = 62


@dataclass(frozen=True)
class Box:
    """A layer of the chain.

    Args:
        name: Its whole path, for the tooltip.
        label: What fits of it.
        dtype: The dtype of what it returns.
        y: Top of the box.
    """

    name: str
    label: str
    dtype: str
    y: int


@dataclass(frozen=True)
class Line:
    """An edge between two boxes.

    Args:
        path: SVG path data.
        title: From where to where, and the cast.
        label: The cast, e.g. `"float32 → bfloat16"`; empty where there is none or no room.
        label_y: Base line of the label.
        is_cast: Whether the dtype changes on the way.
    """

    path: str
    title: str
    label: str
    label_y: int
    is_cast: bool


@dataclass(frozen=True)
class Chain:
    """A drawing of the model.

    Args:
        boxes: From the top down.
        lines: Those without a cast first, so that casts are drawn over them.
        height: Of the drawing.
    """

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    height: int


def chain_of(report: ProfileReport) -> Chain:
    """Lays out the layers that compute (those that hold no other) in the order of their calls.

    Args:
        report: The profile.

    Returns:
        The chain; operations that are no layers and the model's inputs are boxes of their own where
        an edge names them.
    """
    dtypes = _dtypes(report)
    names = _in_order(report, dtypes)
    place = {name: index for index, name in enumerate(names)}
    boxes = [
        Box(name or "input", _shortened(name or "input"), dtypes[name], _top(place[name]))
        for name in names
    ]
    labelled: set[int] = set()
    lines = [
        _line(edge, place[edge.source], place[edge.target], labelled)
        for edge in dict.fromkeys(report.edges)
        if edge.source in place and edge.target in place
    ]
    return Chain(
        tuple(boxes),
        tuple(sorted(lines, key=lambda line: line.is_cast)),
        _top(len(boxes)) if boxes else 0,
    )


def _dtypes(report: ProfileReport) -> dict[str, str]:
    """What each box returns: layers by their rows, all else by the edges that leave or reach it."""
    parents = {row.parent for row in report.layers}
    found = {row.path: _dtype(row) for row in report.layers if row.path not in parents}
    for edge in report.edges:
        if edge.target not in parents:
            found.setdefault(edge.target, edge.after)
    for edge in report.edges:
        if edge.source not in parents:
            found.setdefault(edge.source, edge.before)
    return found


def _dtype(row: LayerRow) -> str:
    return row.outputs[0] if row.outputs else row.compute_dtype


def _in_order(report: ProfileReport, dtypes: Mapping[str, str]) -> list[str]:
    """Layers as they were called; an operation behind the last of the boxes that feed it."""
    names = [row.path for row in report.layers if row.path in dtypes]
    known = set(names)
    for edge in report.edges:
        for name in (edge.source, edge.target):
            if name in dtypes and name not in known:
                known.add(name)
                feeding = [names.index(e.source) for e in report.edges if _feeds(e, name, names)]
                names.insert(max(feeding, default=-1) + 1, name)
    return names


def _feeds(edge: Edge, name: str, names: list[str]) -> bool:
    return edge.target == name and edge.source in names


def _line(edge: Edge, source: int, target: int, labelled: set[int]) -> Line:
    cast = f"{edge.before} → {edge.after}" if edge.is_cast else ""
    title = f"{edge.source or 'input'} to {edge.target or 'output'}: {cast or edge.before}"
    below, above = _top(source) + BOX, _top(target)
    middle = LEFT + 24
    if target == source + 1:
        path = f"M{middle} {below}V{above}"
    else:  # round the boxes in between, the farther the wider
        bow = LEFT - min(_DEPTH, 10 + 6 * abs(target - source))
        start, end = below - BOX // 2, above + BOX // 2
        path = f"M{LEFT} {start}C{bow} {start} {bow} {end} {LEFT} {end}"
    has_room = bool(cast) and target not in labelled
    if has_room:
        labelled.add(target)
    return Line(path, title, cast if has_room else "", above - 8, edge.is_cast)


def _top(index: int) -> int:
    return 8 + index * ROW


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
