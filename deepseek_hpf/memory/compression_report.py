"""`CompressionReport`: which layers keep less for the backward pass, and why not."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class CompressionRow:
    """One layer.

    Args:
        path: The layer's path, as `adapters.walk` makes it.
        class_name: Name of its class.
        storage: How it keeps its activations; None where nothing was changed.
        reason: Why it was left; empty where it was not.
    """

    path: str
    class_name: str
    storage: str | None
    reason: str = ""


@dataclass
class CompressionReport:
    """What `compress_activations` did. Prints as a table.

    Args:
        rows: One for each layer, parents before children.
    """

    rows: list[CompressionRow]
    _revert: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def compressed(self) -> list[str]:
        """Paths of the layers that keep less."""
        return [row.path for row in self.rows if row.storage is not None]

    @property
    def refused(self) -> dict[str, str]:
        """Paths of the layers that were left, and why."""
        return {row.path: row.reason for row in self.rows if row.storage is None}

    def revert(self) -> None:
        """Takes everything back; compiled functions are made anew. A second call does nothing."""
        self._revert()

    def __rich__(self) -> Table:
        table = Table()
        for title in ("layer", "class", "activations", "reason"):
            table.add_column(title, overflow="fold")
        for row in self.rows:
            cells = (row.path, row.class_name, row.storage or "as computed", row.reason)
            # Text, not markup: a layer may be called "[red]".
            table.add_row(*map(Text, cells))
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), width=120, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()
