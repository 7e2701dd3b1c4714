"""A profile as tables on the console, worst first."""

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.wording import (
    headline,
    in_bytes,
    in_flops,
    in_seconds,
    magnitude,
    risk,
    rules_text,
    what_if_text,
)

MOST_ROWS = 20


def report_tables(report: ProfileReport, rows: int = MOST_ROWS) -> RenderableType:
    """Returns the tables of a profile: conflicts, ranges, operations, casts.

    Args:
        report: The profile.
        rows: Most rows of a table; the rest is named in a line below it.

    Returns:
        What a rich `Console` prints.
    """
    where = f"{report.model} on {report.backend}, {report.policy}, {report.steps} step(s)"
    parts: list[RenderableType] = [Text(where, style="bold")]
    parts += [Text(sentence) for sentence in (*headline(report), *report.notes)]
    for make in (_conflicts, _history, _ranges, _operations, _casts):
        parts += make(report, rows)
    return Group(*parts)


def report_text(report: ProfileReport, width: int = 120) -> str:
    """Returns the tables as plain text.

    Args:
        report: The profile.
        width: In characters.
    """
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(report_tables(report))
    return capture.get()


def _table(
    title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], most: int
) -> list[RenderableType]:
    """A table and, if it was cut, a line on what is left out. Columns that end in `>` are right."""
    cells = list(rows)
    if not cells:
        return []
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            column.rstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    for row in cells[:most]:
        table.add_row(*(Text(cell) for cell in row))  # as text: brackets in a name are no style
    left = len(cells) - most
    return [table, Text(f"… and {left} more", style="dim")] if left > 0 else [table]


def _conflicts(report: ProfileReport, most: int) -> list[RenderableType]:
    rows = (
        (
            conflict.severity,
            conflict.path,
            conflict.operation,
            " > ".join(conflict.dtypes),
            f"{conflict.message}\n{rules_text(conflict) or conflict.advice}",
            in_bytes(conflict.bytes),
            in_seconds(conflict.seconds),
        )
        for conflict in report.conflicts
    )
    columns = ("", "where", "operation", "dtypes", "what, and what to write", "bytes>", "time>")
    return _table("Conflicts, worst first", columns, rows, most)


def _history(report: ProfileReport, most: int) -> list[RenderableType]:
    if report.nonfinite is None:
        return []
    rows = (
        (row.path, row.dtype, magnitude(row.largest), f"{row.infinities:,}", f"{row.nans:,}")
        for row in report.nonfinite.history
    )
    columns = ("layer", "dtype", "largest>", "inf>", "NaN>")
    return _table("Outputs before the first non-finite value", columns, rows, most)


def _ranges(report: ProfileReport, most: int) -> list[RenderableType]:
    rows = (
        (
            row.path,
            f"{row.kind} {row.name}".strip(),
            row.dtype,
            magnitude(row.smallest),
            magnitude(row.largest),
            *(what_if_text(entry) for entry in row.what_if[:2]),
        )
        for row in sorted(report.ranges, key=risk, reverse=True)
    )
    columns = ("layer", "values", "dtype", "smallest>", "largest>", "as float16", "as bfloat16")
    return _table("Ranges, riskiest first", columns, rows, most)


def _operations(report: ProfileReport, most: int) -> list[RenderableType]:
    rows = (
        (
            row.name,
            row.dtype,
            f"{row.count:,}",
            in_flops(row.flops),
            in_bytes(row.bytes),
            in_seconds(row.seconds),
        )
        for row in sorted(report.census.operations, key=lambda row: -(row.seconds or 0))
    )
    columns = ("operation", "dtype", "count>", "FLOPs>", "bytes>", "time>")
    return _table("Operations of a step", columns, rows, most)


def _casts(report: ProfileReport, most: int) -> list[RenderableType]:
    rows = (
        (row.source, row.target, f"{row.count:,}", in_bytes(row.bytes), in_seconds(row.seconds))
        for row in report.census.casts
    )
    return _table("Casts of a step", ("from", "to", "count>", "bytes>", "time>"), rows, most)
