"""`TuningResult`: what was tried on a model, what won, and the configuration that trains so."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.tuning.candidates import Candidate


@dataclass(frozen=True)
class TuningResult:
    """What `tune` found. Prints as a table, the fastest first.

    Args:
        model: Name of the model.
        backend: Keras's back end.
        device: What it ran on.
        candidates: All that was tried or left out.
        best: The one that won: the fastest within the error budget, or the fastest of Keras's own
            policies where nothing beats that.
        plan: What its configuration makes of each layer of the model.
        error_budget: Largest relative error of the loss that was allowed.
        seconds: What tuning took.
        is_cached: Whether it was found in the cache and not measured now.
        notes: What else is to be said.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf import tune
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> batch = np.ones((4, 8), "float32"), np.ones((4, 4), "float32")
        >>> result = tune(model, batch, time_budget=5, cache=False)
        >>> result.best in result.candidates
        True
        >>> result.config == result.best.config
        True
    """

    model: str
    backend: str
    device: str
    candidates: tuple[Candidate, ...]
    best: Candidate
    plan: PrecisionPlan
    error_budget: float
    seconds: float
    is_cached: bool = False
    notes: tuple[str, ...] = ()

    @property
    def config(self) -> PrecisionConfig:
        """The configuration that won, for `MixedPrecisionPolicy(config=…)` or `apply_policy`."""
        return self.best.config

    def to_json(self, path: StrPath) -> None:
        """Writes the configuration that won, as `MixedPrecisionPolicy.from_json` reads it.

        Args:
            path: Where to. An existing file is replaced, whole or not at all.

        Raises:
            OSError: The place cannot be written.
        """
        self.config.to_json(path)

    def plot(self, path: StrPath) -> None:
        """Draws time against error, with the candidates that no other beats in both joined.

        Args:
            path: Of a PNG, SVG or PDF file. Replaced whole or not at all.

        Raises:
            ConfigError: matplotlib, of the extra `report`, is not installed, or the file's ending
                is none that it knows.
            OSError: The place cannot be written.
        """
        from deepseek_hpf.tuning.plot import draw

        draw(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, of which `from_dict` makes an equal result."""
        return {
            "model": self.model,
            "backend": self.backend,
            "device": self.device,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
            "best": self.best.name,
            "plan": self.plan.to_dict(),
            "error_budget": self.error_budget,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a result of what `to_dict` returned.

        Args:
            values: Its keys.

        Returns:
            The result.

        Raises:
            ConfigError: A key is missing or a value not valid.
        """
        try:
            candidates = tuple(Candidate.from_dict(each) for each in values["candidates"])
            return cls(
                model=str(values["model"]),
                backend=str(values["backend"]),
                device=str(values["device"]),
                candidates=candidates,
                best=next(each for each in candidates if each.name == values["best"]),
                plan=PrecisionPlan.from_dict(values["plan"]),
                error_budget=float(values["error_budget"]),
                seconds=float(values["seconds"]),
                notes=tuple(values["notes"]),
            )
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            raise ConfigError(
                f"expected what `TuningResult.to_dict` returns. Received what fails: {error!r}"
            ) from error

    def from_cache(self) -> Self:
        """Returns the same result, marked as found and not measured."""
        return replace(self, is_cached=True)

    @property
    def lines(self) -> list[str]:
        """What is said beneath the table."""
        found = ", found in the cache" if self.is_cached else ""
        lines = [
            f"{self.model} on {self.device}, {self.backend}: tuned in {self.seconds:.0f} s{found}",
            f"best: {self.best.name}, {_ratio(self.best)} times as fast as float32",
        ]
        rules = len(self.config.rules)
        if rules:
            lines.append(f"with {rules} rules for single layers")
        return [*lines, *self._lines_of_candidates(), *self.notes]

    def _lines_of_candidates(self) -> list[str]:
        """What is to be said of single candidates, of those alike together."""
        told: dict[str, list[str]] = {}
        for each in self.candidates:
            if note := _note(each):
                told.setdefault(note, []).append(each.name)
        return [f"{'; '.join(names)}: {note}" for note, names in told.items()]

    def __rich__(self) -> Group:
        table = Table()
        table.add_column("candidate", overflow="fold")
        for title in ("a step", "speed", "quartiles", "loss error", "gradients'"):
            table.add_column(title, justify="right", no_wrap=True)
        timed = [each for each in self.candidates if each.seconds is not None]
        for each in sorted(timed, key=lambda c: -(c.ratio or 0.0)):
            table.add_row(*map(Text, _cells(each)), style="bold" if each == self.best else None)
        return Group(table, *map(Text, self.lines))

    def __str__(self) -> str:
        """The table as plain text."""
        console = Console(file=io.StringIO(), force_jupyter=False, width=130, color_system=None)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def _cells(candidate: Candidate) -> list[str]:
    spread = candidate.spread
    return [
        candidate.name,
        "" if candidate.seconds is None else f"{candidate.seconds * 1e3:.4g} ms",
        _ratio(candidate),
        "" if spread is None else f"{spread[0]:.2f} to {spread[1]:.2f}",
        _share(candidate.loss_error),
        _share(candidate.gradient_error),
    ]


def _note(candidate: Candidate) -> str:
    foretold = [] if candidate.predicted is None else [f"predicted {candidate.predicted:.2f}"]
    untimed = ["not timed"] if candidate.seconds is None else []
    return "; ".join([*foretold, *filter(None, [candidate.note])] or untimed)


def _ratio(candidate: Candidate) -> str:
    return "" if candidate.ratio is None else f"{candidate.ratio:.2f}"


def _share(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"
