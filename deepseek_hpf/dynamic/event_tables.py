"""A recorded run as tables on the console: what was decided and why, and what it came to."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deepseek_hpf.dynamic.event_wording import level_name, stay_text, summary_text, tell
from deepseek_hpf.dynamic.recorded_run import RecordedRun
from deepseek_hpf.dynamic.run_summary import RunSummary, summary_of

MOST_ROWS = 40


def event_tables(run: RecordedRun, rows: int = MOST_ROWS) -> RenderableType:
    """Returns the tables of a run: its events with their reasons, and the time in each precision.

    Args:
        run: The run, or a part of it.
        rows: Most events shown, the last ones; a line below says how many there are before.

    Returns:
        What a rich `Console` prints.
    """
    start, summary = run.starts[-1], summary_of(run)
    where = f"{start.model}, {start.policy}, controller {start.controller}"
    parts: list[RenderableType] = [
        Text(f"{where}, steps {run.first:,} to {run.end:,}", style="bold")
    ]
    parts += [Text(sentence) for sentence in (*summary_text(summary), *run.notes)]
    parts += _events(run, rows)
    if summary.steps and summary.stays:
        parts.append(_stays(summary, start.policy))
    return Group(*parts)


def _events(run: RecordedRun, most: int) -> list[RenderableType]:
    if not run.events:
        return [Text("No events: the precision is what it was at the start.")]
    table = _table("Events", ("step>", "what", "where", "why"))
    for event in run.events[-most:]:
        table.add_row(f"{event.step:,}", *map(Text, tell(event, run)))
    left = len(run.events) - most
    return [table, Text(f"… after {left:,} earlier", style="dim")] if left > 0 else [table]


def _stays(summary: RunSummary, policy: str) -> Table:
    levels = list(dict.fromkeys(level for own in summary.stays.values() for level in own))
    columns = ("block", *(f"{level_name(level, policy)}>" for level in levels))
    table = _table("Time in each precision", columns)
    for block, stays in summary.stays.items():
        cells = (
            stay_text(stays[level], summary.steps) if level in stays else "" for level in levels
        )
        table.add_row(Text(block), *map(Text, cells))
    return table


def _table(title: str, columns: tuple[str, ...]) -> Table:
    """A table; columns that end in `>` are right."""
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        right = column.endswith(">")
        table.add_column(
            Text(column.removesuffix(">")), justify="right" if right else "left", overflow="fold"
        )
    return table
