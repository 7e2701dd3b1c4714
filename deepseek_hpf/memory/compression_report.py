"""`CompressionReport`: which layers keep less for the backward pass, and why not."""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

MEASURED = ("bytes before", "bytes after", "error")


@dataclass(frozen=True)
class CompressionRow:
    """One layer.

    Args:
        path: The layer's path, as `adapters.walk` makes it.
        class_name: Name of its class.
        storage: How it keeps its activations; None where nothing was changed.
        reason: Why it was left; empty where it was not.
        bytes_before: What it kept before; None where that was not measured. What several layers
            keep is in the bytes of each.
        bytes_after: What it keeps now.
        error: How far its storage moves the gradient, relative to the gradient's length; None
            where that was not measured.
    """

    path: str
    class_name: str
    storage: str | None
    reason: str = ""
    bytes_before: int | None = None
    bytes_after: int | None = None
    error: float | None = None


@dataclass
class CompressionReport:
    """What `compress_activations` did. Prints as a table.

    Args:
        rows: One for each layer, parents before children.
        bytes_before: What the layers kept before, what several of them keep once; None where it
            was not measured.
        bytes_after: What they keep now.
    """

    rows: list[CompressionRow]
    bytes_before: int | None = None
    bytes_after: int | None = None
    _revert: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def compressed(self) -> list[str]:
        """Paths of the layers that keep less."""
        return [row.path for row in self.rows if row.storage is not None]

    @property
    def refused(self) -> dict[str, str]:
        """Paths of the layers that were left, and why."""
        return {row.path: row.reason for row in self.rows if row.storage is None}

    @property
    def error(self) -> float | None:
        """How far all storages together move the gradient, relative to its length.

        Roundings are independent, so that squares add up. None where that was not measured.
        """
        errors = [row.error for row in self.rows if row.error is not None]
        return math.hypot(*errors) if errors else None

    def revert(self) -> None:
        """Takes everything back; compiled functions are made anew. A second call does nothing."""
        self._revert()

    def __rich__(self) -> Table:
        measured = self.bytes_before is not None
        table = Table()
        for title in ("layer", "class", "activations", *(MEASURED if measured else ()), "reason"):
            table.add_column(title, overflow="fold", justify=_justified(title))
        for row in self.rows:
            figures = (_shown(row.bytes_before), _shown(row.bytes_after), _shown_error(row.error))
            cells = (row.path, row.class_name, row.storage or "as computed")
            # Text, not markup: a layer may be called "[red]".
            table.add_row(*map(Text, (*cells, *(figures if measured else ()), row.reason)))
        if measured:
            table.add_section()
            total = (_shown(self.bytes_before), _shown(self.bytes_after), _shown_error(self.error))
            table.add_row("all, each tensor once", "", "", *total, "")
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), force_jupyter=False, width=120, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def _justified(title: str) -> Literal["left", "right"]:
    return "right" if title in MEASURED else "left"


def _shown(size: int | None) -> str:
    return "" if size is None else f"{size:,}"


def _shown_error(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"
