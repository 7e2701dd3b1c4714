"""Operations of a traced training step, whatever the framework, and their sums by precision."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.profiler.findings import CastCount, Census, OperationCount

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


def census_of(operations: Iterable[TracedOperation], origin: str, notes: Iterable[str]) -> Census:
    """Adds up traced operations by kind and dtype, and casts by the two dtypes.

    A cast is a change from one floating-point dtype to another. Conversions from and to integers
    are operations; what has no floating-point input or output (shapes, counters, indices) is left
    out.

    Args:
        operations: The step's operations.
        origin: What was read.
        notes: What could not be known.

    Returns:
        The census; operations of most FLOPs first, casts of most bytes first.

    Example:
        >>> down = (Array("float32", (8,)),), (Array("bfloat16", (8,)),)
        >>> product = (Array("bfloat16", (8,)),), (Array("bfloat16", (1,)),)
        >>> step = [
        ...     TracedOperation("Cast", "a", *down, is_cast=True, times=3),
        ...     TracedOperation("MatMul", "b", *product, flops=16.0),
        ... ]
        >>> census = census_of(step, "made up", ())
        >>> census.cast_count, census.casts[0].bytes, census.arithmetic_shares()
        (3, 144, {'bfloat16': 1.0})
    """
    rows: dict[tuple[str, str], list[TracedOperation]] = {}
    casts: dict[tuple[str, str], list[TracedOperation]] = {}
    for operation in operations:
        if (
            operation.is_cast
            and operation.inputs[0].is_floating
            and operation.outputs[0].is_floating
        ):
            key = operation.inputs[0].dtype, operation.outputs[0].dtype
            casts.setdefault(key, []).append(operation)
        elif operation.dtype is not None:
            rows.setdefault((operation.kind, operation.dtype), []).append(operation)
    counts = [OperationCount(*key, **_sums(found)) for key, found in rows.items()]
    changes = [CastCount(*key, **_sums(found, flops=False)) for key, found in casts.items()]
    return Census(
        origin,
        tuple(sorted(counts, key=lambda row: (-row.flops, -row.bytes, row.name))),
        tuple(sorted(changes, key=lambda row: (-row.bytes, row.source, row.target))),
        tuple(notes),
    )


def _sums(found: list[TracedOperation], flops: bool = True) -> dict[str, Any]:
    measured = [each.seconds for each in found if each.seconds is not None]
    sums: dict[str, Any] = {
        "count": sum(each.times for each in found),
        "bytes": sum(each.bytes * each.times for each in found),
        "seconds": sum(measured) if measured else None,
    }
    if flops:
        sums["flops"] = float(sum(each.flops * each.times for each in found))
    return sums
