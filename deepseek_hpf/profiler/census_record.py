"""The census as data: which operations a training step consists of, and in which precision."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from deepseek_hpf.dtypes import FORMATS

_BYTES = {"complex128": 16, "complex64": 8, "int64": 8, "uint64": 8, "int32": 4, "uint32": 4}
_BYTES |= {"int16": 2, "uint16": 2} | {name: form.bits // 8 for name, form in FORMATS.items()}


class Array(NamedTuple):
    """What an operation reads or writes.

    Args:
        dtype: Name of its dtype, e.g. `"bfloat16"`.
        shape: Its shape; a dimension that is not known counts as 1.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of its elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def bytes(self) -> int:
        """Bytes of its elements; a dtype that is not known counts one byte an element."""
        return self.elements * _BYTES.get(self.dtype, 1)

    @property
    def is_floating(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.dtype in FORMATS or self.dtype.startswith("float8")


class TracedOperation(NamedTuple):
    """One operation of a traced step, whatever the framework calls it.

    Args:
        kind: Name of the operation, e.g. `"MatMul"`, `"dot_general"`, `"aten.mm"`.
        place: Where in the program it is, as the framework tells, e.g. `"resnet/conv1/Cast"`.
        inputs: Arrays that it reads.
        outputs: Arrays that it writes.
        flops: Floating-point operations of one run; 0 for one that only moves numbers.
        is_cast: Whether it does nothing but convert a dtype.
        times: How often it runs in a step: the trip count of the loops around it.
        seconds: Of all its runs in a step; None if not measured.
    """

    kind: str
    place: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    flops: float = 0.0
    is_cast: bool = False
    times: int = 1
    seconds: float | None = None

    @property
    def dtype(self) -> str | None:
        """The dtype it computes in: its first floating-point input's, else output's, else None."""
        floats = [array.dtype for array in (*self.inputs, *self.outputs) if array.is_floating]
        return floats[0] if floats else None

    @property
    def bytes(self) -> int:
        """Bytes read and written in one run."""
        return sum(array.bytes for array in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class OperationRow:
    """All operations of one kind and dtype in a step.

    Args:
        operation: Name of the operation.
        dtype: What it computes in.
        count: How many run in a step.
        flops: Floating-point operations a step.
        bytes: Bytes read and written a step.
        seconds: Of a step; None if not measured.
    """

    operation: str
    dtype: str
    count: int
    flops: float
    bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class CastRow:
    """All conversions from one dtype to another in a step.

    Args:
        source: The dtype before.
        target: The dtype after.
        count: How many run in a step.
        bytes: Bytes read and written a step.
        seconds: Of a step; None if not measured.
        places: Where the largest of them are, at most eight.
    """

    source: str
    target: str
    count: int
    bytes: int
    seconds: float | None = None
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Census:
    """The operations of one training step by dtype, as the back end's own trace has them.

    Args:
        backend: `"tensorflow"`, `"jax"` or `"torch"`.
        source: One sentence: what was counted, and how the time was taken.
        operations: Rows, those of most FLOPs first; casts are not among them.
        casts: Rows, those of most bytes first; every change of dtype, integers included.

    Example:
        >>> row = OperationRow("MatMul", "bfloat16", 2, flops=300.0, bytes=60)
        >>> one = OperationRow("Sub", "float32", 1, flops=100.0, bytes=20)
        >>> Census("tensorflow", "made up", (row, one), ()).arithmetic_shares
        {'bfloat16': 0.75, 'float32': 0.25}
    """

    backend: str
    source: str
    operations: tuple[OperationRow, ...]
    casts: tuple[CastRow, ...]

    @property
    def cast_count(self) -> int:
        """Number of conversions a step from one floating-point dtype to another."""
        return sum(row.count for row in self.casts if _are_floating(row))

    @property
    def cast_bytes(self) -> int:
        """Bytes that these conversions read and write in a step."""
        return sum(row.bytes for row in self.casts if _are_floating(row))

    @property
    def cast_seconds(self) -> float | None:
        """Seconds a step that these conversions take; None if not measured."""
        return _sum_or_none(row.seconds for row in self.casts if _are_floating(row))

    @property
    def flops(self) -> float:
        """Floating-point operations of a step."""
        return sum(row.flops for row in self.operations)

    @property
    def seconds(self) -> float | None:
        """Seconds of all operations of a step, threads added up; None if not measured."""
        return _sum_or_none(row.seconds for row in (*self.operations, *self.casts))

    @property
    def arithmetic_shares(self) -> dict[str, float]:
        """Share of the FLOPs in each dtype, from 0 to 1, the largest first."""
        total = self.flops
        sums: dict[str, float] = {}
        for row in self.operations:
            sums[row.dtype] = sums.get(row.dtype, 0.0) + row.flops
        shares = {dtype: flops / total for dtype, flops in sums.items() if flops and total}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """Returns the census as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Census":
        """Makes a census from what `to_dict` returned.

        Args:
            data: The mapping, e.g. read from JSON.

        Raises:
            KeyError: Something is missing.
            TypeError: A row has a key too many or too few.
        """
        casts = (
            CastRow(**{**row, "places": tuple(row.get("places", ()))}) for row in data["casts"]
        )
        operations = (OperationRow(**row) for row in data["operations"])
        return cls(data["backend"], data["source"], tuple(operations), tuple(casts))


_MOST_PLACES = 8


def census_of(operations: Iterable[TracedOperation], backend: str, source: str) -> Census:
    """Adds up traced operations by kind and dtype, and casts by the two dtypes.

    Operations without a floating-point input or output (shapes, counters, indices) are left out.

    Args:
        operations: The step's operations.
        backend: The back end's name.
        source: What was counted.

    Returns:
        The census.
    """
    rows: dict[tuple[str, str], list[TracedOperation]] = {}
    casts: dict[tuple[str, str], list[TracedOperation]] = {}
    for operation in operations:
        if operation.is_cast:
            key = operation.inputs[0].dtype, operation.outputs[0].dtype
            casts.setdefault(key, []).append(operation)
        elif operation.dtype is not None:
            rows.setdefault((operation.kind, operation.dtype), []).append(operation)
    operation_rows = [_operation_row(*key, found) for key, found in rows.items()]
    cast_rows = [_cast_row(*key, found) for key, found in casts.items()]
    return Census(
        backend,
        source,
        tuple(sorted(operation_rows, key=lambda row: (-row.flops, -row.bytes, row.operation))),
        tuple(sorted(cast_rows, key=lambda row: (-row.bytes, row.source, row.target))),
    )


def _operation_row(kind: str, dtype: str, found: list[TracedOperation]) -> OperationRow:
    return OperationRow(
        kind,
        dtype,
        sum(each.times for each in found),
        float(sum(each.flops * each.times for each in found)),
        sum(each.bytes * each.times for each in found),
        _sum_or_none(each.seconds for each in found),
    )


def _cast_row(source: str, target: str, found: list[TracedOperation]) -> CastRow:
    largest = sorted(found, key=lambda each: -each.bytes * each.times)
    return CastRow(
        source,
        target,
        sum(each.times for each in found),
        sum(each.bytes * each.times for each in found),
        _sum_or_none(each.seconds for each in found),
        tuple(dict.fromkeys(each.place for each in largest if each.place))[:_MOST_PLACES],
    )


def _are_floating(row: CastRow) -> bool:
    return Array(row.source, ()).is_floating and Array(row.target, ()).is_floating


def _sum_or_none(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return sum(measured) if measured else None
