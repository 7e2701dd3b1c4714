"""`BatchSizeResult`: batch sizes and precisions that were tried, and the best of them."""

import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek_hpf.files import StrPath, write_text_atomically
from deepseek_hpf.memory.memory_estimate import in_units


@dataclass(frozen=True, kw_only=True)
class BatchTrial:
    """A batch size under a policy.

    Args:
        policy: Name of the policy.
        batch_size: Rows.
        fits: Whether it trained within the limit.
        seconds: A step; None where it did not fit.
        peak: Bytes that the process took beyond what it had without the model, compilation
            included; where it did not fit, what it had when it was ended; None if not known.
        estimate: Bytes of a step, as `memory.estimate` says; None where that was not asked.
        note: Why it did not fit.
    """

    policy: str
    batch_size: int
    fits: bool
    seconds: float | None = None
    peak: int | None = None
    estimate: int | None = None
    note: str = ""

    @property
    def throughput(self) -> float | None:
        """Rows a second."""
        return None if self.seconds is None else self.batch_size / self.seconds


@dataclass(frozen=True, kw_only=True)
class BatchSizeResult:
    """What `find_batch_size` found. Prints as a table.

    Args:
        best: The trial that won.
        trials: All of them, by policy and rows.
        objective: `"fits"` or `"throughput"`.
        limit: Bytes that a step might take.
        backend: Keras's name of the back end.
        notes: What else has to be said.
    """

    best: BatchTrial
    trials: tuple[BatchTrial, ...]
    objective: str
    limit: int
    backend: str
    notes: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """The batch size to train with."""
        return self.best.batch_size

    @property
    def policy(self) -> str:
        """The policy to train under."""
        return self.best.policy

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            "batch_size": self.batch_size,
            "policy": self.policy,
            "objective": self.objective,
            "limit": self.limit,
            "backend": self.backend,
            "notes": list(self.notes),
            "trials": [
                {**dataclasses.asdict(each), "throughput": each.throughput} for each in self.trials
            ],
        }

    def to_json(self, path: StrPath) -> None:
        """Writes `to_dict` to a file, whole or not at all.

        Args:
            path: The file.

        Raises:
            OSError: It cannot be written.
        """
        write_text_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __rich__(self) -> Table:
        title = f"Batches within {in_units(self.limit)}, {self.backend}"
        table = Table(title=Text(title))
        for head in ("", "policy", "rows", "rows a second", "seconds a step", "peak", "estimate"):
            table.add_column(head, justify="left" if head in ("", "policy") else "right")
        for each in self.trials:
            is_best = each == self.best
            table.add_row(*map(Text, _cells(each, is_best)), style="bold" if is_best else None)
        table.caption = Text("; ".join(self.notes))
        return table

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), force_jupyter=False, width=100, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def _cells(trial: BatchTrial, is_best: bool) -> tuple[str, ...]:
    speed = "does not fit" if trial.throughput is None else f"{trial.throughput:,.1f}"
    return (
        "best" if is_best else "",
        trial.policy,
        str(trial.batch_size),
        speed,
        "" if trial.seconds is None else f"{trial.seconds:.3g}",
        in_units(trial.peak),
        "" if trial.estimate is None else in_units(trial.estimate),
    )
