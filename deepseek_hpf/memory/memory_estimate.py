"""`MemoryEstimate`: what a training step needs, term by term, as a table and as JSON."""

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek_hpf.files import StrPath, write_text_atomically


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training step, without the framework itself.

    `total` is parameters, slots and batch, which are there all the time, and the peak of what a
    step makes and gives back. Gradients and what is kept for the backward pass are part of that
    peak; they are not alive in full at the same time.

    Args:
        model: Its name.
        backend: Keras's name of the back end.
        policy: Name of the policy, or what else it trains under.
        batch_size: Rows.
        parameters: All variables of the model, moving statistics included.
        slots: All variables of the optimizer, masters included, and of the metrics.
        batch: Inputs, targets and weights.
        gradients: One for each trainable variable, in the variable's dtype.
        kept: What the forward pass keeps for the backward pass, weights left out; None where that
            is not told.
        temporary: The peak beyond parameters, slots and batch.
        origin: Where the peak comes from, in a sentence.
        notes: What else has to be said.
    """

    model: str
    backend: str
    policy: str
    batch_size: int
    parameters: int
    slots: int
    batch: int
    gradients: int
    kept: int | None
    temporary: int
    origin: str
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """The peak of a step."""
        return self.parameters + self.slots + self.batch + self.temporary

    def to_dict(self) -> dict[str, Any]:
        """Returns all terms and the total as JSON values; bytes."""
        values = dataclasses.asdict(self)
        return {**values, "notes": list(self.notes), "total": self.total}

    def to_json(self, path: StrPath) -> None:
        """Writes `to_dict` to a file, whole or not at all.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be written.
        """
        write_text_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __rich__(self) -> Table:
        return comparison({self.policy: self})

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), force_jupyter=False, width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


_TERMS = (
    ("parameters", "parameters"),
    ("slots", "optimizer and metrics"),
    ("batch", "batch"),
    ("temporary", "peak of what a step makes"),
    ("kept", "  in it: kept for the backward pass"),
    ("gradients", "  in it: gradients"),
    ("total", "total"),
)


def comparison(estimates: Mapping[str, MemoryEstimate]) -> Table:
    """Returns a table with a column for each estimate, and its total over that of the first.

    Args:
        estimates: Head of the column to estimate; at least one.
    """
    first = next(iter(estimates.values()))
    table = Table(title=Text(f"{first.model}, {first.batch_size} rows, {first.backend}"))
    table.add_column("bytes of a training step")
    for name in estimates:
        table.add_column(Text(name), justify="right")
    for key, title in _TERMS:
        cells = [in_units(getattr(each, key)) for each in estimates.values()]
        table.add_row(Text(title), *map(Text, cells), style="bold" if key == "total" else None)
    if len(estimates) > 1:
        shares = [f"{each.total / first.total:.2f}" for each in estimates.values()]
        table.add_row(Text(f"total over {next(iter(estimates))}'s"), *map(Text, shares))
    table.caption = Text("; ".join(_remarks(estimates)))
    return table


def _remarks(estimates: Mapping[str, MemoryEstimate]) -> list[str]:
    origins = dict.fromkeys(each.origin for each in estimates.values())
    notes = (f"{name}: {n}" for name, each in estimates.items() for n in each.notes)
    return [*origins, *dict.fromkeys(notes)]


def in_units(count: int | None) -> str:
    """Returns bytes in words.

    Args:
        count: Bytes, or None.

    Returns:
        The number in KiB, MiB or GiB.

    Example:
        >>> in_units(1536), in_units(3 * 2**30), in_units(None)
        ('1.5 KiB', '3.0 GiB', 'not told')
    """
    if count is None:
        return "not told"
    for exponent, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if abs(count) >= 2**exponent:
            return f"{count / 2**exponent:,.1f} {unit}"
    return f"{count} B"
