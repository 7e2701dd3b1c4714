"""What a profile found, as frozen data: plain values that go to JSON and back unchanged."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from deepseek_hpf.files import StrPath, write_text_atomically
from deepseek_hpf.profiler.findings import (
    CastCount,
    Census,
    Conflict,
    Edge,
    LayerRow,
    NonFinite,
    OperationCount,
    RangeRow,
    WhatIf,
)


@dataclass(frozen=True)
class ProfileReport:
    """What `profile` found.

    Args:
        model: Name of the model.
        backend: Name of the Keras back end.
        policy: Name of the dtype policy that the model was made under: what a configuration names
            as its `policy` so that the rules of `conflicts` are all that it changes.
        steps: Number of steps that were looked at.
        layers: One row for each layer that ran, in the order of their first calls' end.
        edges: Tensors between layers.
        conflicts: Worst first.
        ranges: One row for each layer and kind.
        census: The operations of the compiled step.
        nonfinite: The first non-finite value; None where all are finite.
        notes: What could not be looked at, and why.
        seconds: Time that profiling took.

    Example:
        >>> from deepseek_hpf import ProfileReport
        >>> report = ProfileReport(model="m", backend="jax", policy="float32", steps=1)
        >>> ProfileReport.from_dict(report.to_dict()) == report
        True
    """

    model: str
    backend: str
    policy: str
    steps: int
    layers: tuple[LayerRow, ...] = ()
    edges: tuple[Edge, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    ranges: tuple[RangeRow, ...] = ()
    census: Census = field(default_factory=Census)
    nonfinite: NonFinite | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def ranges_of(self, path: str, kind: str = "output") -> tuple[RangeRow, ...]:
        """Range rows of one layer.

        Args:
            path: Path of the layer.
            kind: As in `RangeRow`.

        Returns:
            The rows; several only for weights.
        """
        return tuple(row for row in self.ranges if (row.path, row.kind) == (path, kind))

    def to_html(self, path: StrPath) -> None:
        """Writes the report as one HTML page that needs nothing else.

        Args:
            path: Where to write.

        Raises:
            ConfigError: jinja2, of the extra `report`, is not installed.
            OSError: The file cannot be written.
        """
        from deepseek_hpf.profiler.page import render_page

        write_text_atomically(path, render_page(self))

    def to_json(self, path: StrPath) -> None:
        """Writes the report as JSON, of the schema that is shipped as `profile.schema.json`.

        Args:
            path: Where to write.

        Raises:
            OSError: The file cannot be written.
        """
        from deepseek_hpf.profiler.report_json import to_json

        write_text_atomically(path, to_json(self))

    @classmethod
    def from_json(cls, path: StrPath) -> "ProfileReport":
        """Reads what `to_json` wrote.

        Args:
            path: The file.

        Returns:
            The report.

        Raises:
            ConfigError: It is no report.
            OSError: It cannot be read.
        """
        from deepseek_hpf.profiler.report_json import read_report

        return read_report(path)

    def __str__(self) -> str:
        """The report as tables, worst first."""
        from deepseek_hpf.profiler.console import report_text

        return report_text(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values only: dicts, lists, strings, finite numbers, None.

        Returns:
            What `from_dict` makes an equal report of.
        """
        values: dict[str, Any] = _plain(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a report of what `to_dict` returned.

        Args:
            values: The dict.

        Returns:
            The report.
        """
        nonfinite = values.get("nonfinite")
        return cls(
            **{
                **_known(cls, values),
                "layers": tuple(_of(LayerRow, each) for each in values["layers"]),
                "edges": tuple(_of(Edge, each) for each in values["edges"]),
                "conflicts": tuple(_of(Conflict, each) for each in values["conflicts"]),
                "ranges": tuple(_range(each) for each in values["ranges"]),
                "census": _census(values["census"]),
                "nonfinite": None if nonfinite is None else _nonfinite(nonfinite),
                "notes": tuple(values["notes"]),
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def _of(cls: Any, values: Mapping[str, Any], **made: Any) -> Any:
    known = {**_known(cls, values), **made}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def _range(values: Mapping[str, Any]) -> RangeRow:
    row: RangeRow = _of(
        RangeRow, values, what_if=tuple(_of(WhatIf, each) for each in values["what_if"])
    )
    return row


def _nonfinite(values: Mapping[str, Any]) -> NonFinite:
    found: NonFinite = _of(
        NonFinite, values, history=tuple(_range(each) for each in values["history"])
    )
    return found


def _census(values: Mapping[str, Any]) -> Census:
    census: Census = _of(
        Census,
        values,
        operations=tuple(_of(OperationCount, each) for each in values["operations"]),
        casts=tuple(_of(CastCount, each) for each in values["casts"]),
    )
    return census
