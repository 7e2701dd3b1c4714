"""What a profile is made of: ranges, layers, conflicts and counts, as frozen plain values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FORMATS_TRIED = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
# Signal-to-noise of values that a format holds exactly: JSON has no infinity.
EXACT_DB = 200.0


@dataclass(frozen=True)
class WhatIf:
    """What would become of values if they were cast to a format.

    Args:
        dtype: Name of the format.
        overflow: Share (0 to 1) of the finite values that would become infinite, or NaN in a format
            without infinities.
        underflow: Share (0 to 1) of the nonzero values that would become zero.
        noise_db: Signal-to-quantisation-noise ratio, `10 log10(sum x^2 / sum (x - cast(x))^2)`, in
            dB, over the values that do not overflow. 200 where nothing is lost; None where there is
            no nonzero finite value.
    """

    dtype: str
    overflow: float
    underflow: float
    noise_db: float | None


@dataclass(frozen=True)
class RangeRow:
    """The range of one layer's tensors of one kind, over all calls and steps.

    Args:
        path: Path of the layer.
        kind: `"input"`, `"output"`, `"weight"`, `"output_gradient"` or `"weight_gradient"`.
        name: Name of the weight; else empty.
        dtype: What the values came in, before any cast.
        size: Number of values.
        zeros: Number of zeros.
        nans: Number of NaN.
        infinities: Number of infinities.
        smallest: Smallest finite magnitude other than zero; None where there is none.
        largest: Largest finite magnitude; None where no value is finite.
        what_if: One for each of `FORMATS_TRIED`.
        first_exponent: `histogram[0]` counts magnitudes in `[2^first_exponent, 2^(that + 1))`.
        histogram: Numbers of finite nonzero magnitudes by power of two.
    """

    path: str
    kind: str
    name: str
    dtype: str
    size: int
    zeros: int
    nans: int
    infinities: int
    smallest: float | None
    largest: float | None
    what_if: tuple[WhatIf, ...]
    first_exponent: int
    histogram: tuple[int, ...]

    def at(self, dtype: str) -> WhatIf:
        """What would become of the values in a format.

        Args:
            dtype: One of `FORMATS_TRIED`.

        Returns:
            The shares and the noise.
        """
        return next(entry for entry in self.what_if if entry.dtype == dtype)


@dataclass(frozen=True)
class LayerRow:
    """One layer, as it ran.

    Args:
        path: Its path, as in the rules of a configuration.
        class_name: Its class.
        policy: Name of its dtype policy.
        compute_dtype: What the policy computes in.
        variable_dtype: What the policy keeps variables in.
        inputs: Dtypes of its tensors as they came in.
        computed: The same tensors' dtypes as its `call` saw them.
        outputs: Dtypes of what it returned.
        variables: Dtypes of its own variables, each once.
        calls: Number of calls in one step.
        seconds: Time in its forward call in one step, its children's included and statistics left
            out, operation by operation.
        parent: Path of the layer that holds it; None at the top.
    """

    path: str
    class_name: str
    policy: str
    compute_dtype: str
    variable_dtype: str
    inputs: tuple[str, ...]
    computed: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: tuple[str, ...]
    calls: int
    seconds: float
    parent: str | None = None


@dataclass(frozen=True)
class Edge:
    """A tensor on its way from one layer to the next, and what it is cast to.

    Args:
        source: Path of the layer or name of the operation that made it; empty for a model input.
        target: Path of the layer or name of the operation that takes it.
        before: Dtype it was made in.
        after: Dtype it is used in.
        bytes: Bytes that the cast reads and writes in one step; 0 where there is no cast.
    """

    source: str
    target: str
    before: str
    after: str
    bytes: int

    @property
    def is_cast(self) -> bool:
        """Whether the dtype changes on the way."""
        return self.before != self.after


@dataclass(frozen=True)
class Conflict:
    """A place where precision is lost, or converted to no use.

    Args:
        kind: Which kind, e.g. `"low_softmax"`.
        path: Path of the layer; for an operation that is no layer its name; `"loss"` for the loss.
        operation: What is computed there, e.g. `"Softmax"`.
        dtypes: The dtypes at hand, in the order in which they meet.
        message: One sentence: what happens and why it harms.
        bytes: Bytes moved to no use in one step; 0 where it costs accuracy only.
        seconds: Measured seconds that they take in one step.
        rules: What to add to `rules` in the JSON file, all of it, to be rid of the conflict; empty
            where a configuration cannot help.
        advice: What to do, in words.
        severity: `"error"` where numbers are at risk, `"waste"` where only time is.
    """

    kind: str
    path: str
    operation: str
    dtypes: tuple[str, ...]
    message: str
    bytes: int
    seconds: float
    rules: tuple[Mapping[str, Any], ...]
    advice: str
    severity: str = "error"


@dataclass(frozen=True)
class OperationCount:
    """How often an operation runs in one dtype in one compiled step.

    Args:
        name: Its name in the framework, e.g. `"Conv2D"`.
        dtype: Dtype of its result.
        count: Number of times.
        bytes: Bytes read and written.
        flops: Arithmetic operations; 0 where unknown.
        seconds: Measured time in one step; None where it is not known.
    """

    name: str
    dtype: str
    count: int
    bytes: int
    flops: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class CastCount:
    """How often one dtype is cast to another in one compiled step.

    Args:
        source: Dtype before.
        target: Dtype after.
        count: Number of casts.
        bytes: Bytes read and written.
        seconds: Measured time in one step; None where it is not known.
    """

    source: str
    target: str
    count: int
    bytes: int
    seconds: float | None = None


@dataclass(frozen=True)
class Census:
    """The operations of the compiled training step, by dtype.

    Args:
        origin: What was read, e.g. `"TensorFlow graph"`.
        operations: One for each operation and dtype, casts left out.
        casts: One for each pair of dtypes.
        notes: What could not be known, and why.
    """

    origin: str = ""
    operations: tuple[OperationCount, ...] = ()
    casts: tuple[CastCount, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cast_count(self) -> int:
        """Casts in one step."""
        return sum(cast.count for cast in self.casts)

    def arithmetic_shares(self) -> dict[str, float]:
        """Shares (0 to 1) of the arithmetic in each dtype, the largest first; {} if unknown."""
        flops: dict[str, float] = {}
        for operation in self.operations:
            flops[operation.dtype] = flops.get(operation.dtype, 0.0) + operation.flops
        total = sum(flops.values())
        ranked = sorted(flops.items(), key=lambda item: -item[1])
        return {dtype: count / total for dtype, count in ranked if count} if total else {}


@dataclass(frozen=True)
class NonFinite:
    """The first operation that made an infinity or a NaN.

    Args:
        phase: `"forward"`, `"loss"` or `"backward"`.
        path: Path of the layer or name of the operation; `"loss"` for the loss.
        operation: The operation inside that first made it out of finite values, in the framework's
            words, e.g. `"Log"`; the class of the layer where none was seen.
        value: `"inf"` or `"nan"`.
        step: Number of the step, from 0.
        history: The output ranges of the last layers before it (20 at most), then its own.
        reason: Why no operation could be named; empty where one is.
    """

    phase: str
    path: str
    operation: str
    value: str
    step: int
    history: tuple[RangeRow, ...]
    reason: str = ""
