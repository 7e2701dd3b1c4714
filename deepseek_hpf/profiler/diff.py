"""What has changed from one profile to another."""

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.wording import NOT_KNOWN, in_bytes, in_percent, in_seconds


@dataclass(frozen=True)
class Change:
    """A figure before and after, in words.

    Args:
        what: What it is of.
        before: In the first profile.
        after: In the second.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """What has changed from one profile to another.

    Args:
        gone: Conflicts that only the first has.
        new: Conflicts that only the second has.
        changes: Figures and layers that differ.
    """

    gone: tuple[Conflict, ...]
    new: tuple[Conflict, ...]
    changes: tuple[Change, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has changed."""
        return not (self.gone or self.new or self.changes)


def difference(before: ProfileReport, after: ProfileReport) -> Difference:
    """Compares two profiles.

    Conflicts are the same if their kind, path and operation are. Measured times are listed with the
    sums they belong to and count as no change by themselves: they differ from run to run.

    Args:
        before: The first profile.
        after: The second.

    Returns:
        What has changed.

    Example:
        >>> one = ProfileReport("m", "jax", "float32", 1)
        >>> two = ProfileReport("m", "jax", "mixed_bfloat16", 1)
        >>> [(change.what, change.after) for change in difference(one, two).changes]
        [('policy', 'mixed_bfloat16')]
    """
    keys_before = {_key(conflict) for conflict in before.conflicts}
    keys_after = {_key(conflict) for conflict in after.conflicts}
    changes = (*_heads(before, after), *_layers(before, after), *_census(before, after))
    return Difference(
        tuple(each for each in before.conflicts if _key(each) not in keys_after),
        tuple(each for each in after.conflicts if _key(each) not in keys_before),
        tuple(change for change in changes if change.before != change.after),
    )


def difference_tables(found: Difference) -> RenderableType:
    """Returns the difference as what a rich `Console` prints.

    Args:
        found: The difference.
    """
    if found.is_empty:
        return Text("No difference.")
    parts: list[RenderableType] = []
    for title, conflicts in (("Conflicts gone", found.gone), ("Conflicts new", found.new)):
        if conflicts:
            table = Table("where", "operation", "what", title=Text(title), title_justify="left")
            for each in conflicts:
                table.add_row(Text(each.path), Text(each.operation), Text(each.message))
            parts.append(table)
    if found.changes:
        table = Table("what", "before", "after", title=Text("Changes"), title_justify="left")
        for change in found.changes:
            table.add_row(Text(change.what), Text(change.before), Text(change.after))
        parts.append(table)
    return Group(*parts)


def _key(conflict: Conflict) -> tuple[str, str, str]:
    return conflict.kind, conflict.path, conflict.operation


def _heads(before: ProfileReport, after: ProfileReport) -> list[Change]:
    changes = [
        Change(name, getattr(before, name), getattr(after, name))
        for name in ("model", "backend", "policy")
    ]
    first = [
        NOT_KNOWN if each.nonfinite is None else each.nonfinite.path for each in (before, after)
    ]
    return [*changes, Change("first non-finite value", *first)]


def _layers(before: ProfileReport, after: ProfileReport) -> list[Change]:
    one = {row.path: row.compute_dtype for row in before.layers}
    two = {row.path: row.compute_dtype for row in after.layers}
    return [
        Change(f"layer {path} computes in", one.get(path, NOT_KNOWN), two.get(path, NOT_KNOWN))
        for path in {**one, **two}
    ]


def _census(before: ProfileReport, after: ProfileReport) -> list[Change]:
    one, two = before.census, after.census
    shares = one.arithmetic_shares(), two.arithmetic_shares()
    changes = [
        Change(f"arithmetic in {dtype}", *(in_percent(share.get(dtype, 0.0)) for share in shares))
        for dtype in {**shares[0], **shares[1]}
    ]
    sums = [(census.cast_count, sum(cast.bytes for cast in census.casts)) for census in (one, two)]
    if sums[0] != sums[1]:
        words = [
            f"{count:,}, {in_bytes(moved)}, {in_seconds(_cast_seconds(report))}"
            for (count, moved), report in zip(sums, (before, after), strict=True)
        ]
        changes.append(Change("casts of a step", *words))
    return changes


def _cast_seconds(report: ProfileReport) -> float | None:
    measured = [cast.seconds for cast in report.census.casts if cast.seconds is not None]
    return sum(measured) if measured else None
