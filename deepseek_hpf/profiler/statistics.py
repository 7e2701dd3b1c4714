"""Ranges of values and what each format would make of them: one pass that compiles.

Magnitudes are handled as the integers of their bits, which order as the numbers do. So subnormal
numbers count even where the processor flushes them to zero.
"""

import math
import struct
from typing import Any

import numpy as np

from deepseek_hpf.dtypes import FORMATS, Format
from deepseek_hpf.profiler.findings import EXACT_DB, FORMATS_TRIED, RangeRow, WhatIf

LOWEST_EXPONENT = -149
EXPONENTS = 128 - LOWEST_EXPONENT
_INFINITY = 0x7F800000
_MANTISSA = 1 << 23
_COUNTS = 3 + 2 * len(FORMATS_TRIED)
Partial = tuple[Any, Any, Any, Any]


def partial_statistics(values: Any, count_exponents: Any, ops: Any) -> Partial:
    """Reduces values to what `Summary.add` takes. Meant to be compiled.

    Args:
        values: Float tensor of one axis, not empty.
        count_exponents: Function from an integer tensor to the counts of 0 … `EXPONENTS`, the last
            being a bin for what does not count.
        ops: `keras.ops`, or what has the same functions.

    Returns:
        Counts (zeros, NaN, infinities, then overflow and underflow of each format); bits of the
        smallest and largest magnitude, then for each format the exponent of the largest that it
        holds; sums of squares (signal and noise of each format, in units of the square of two to
        that exponent); numbers by exponent.
    """
    magnitude = ops.bitwise_and(ops.view(ops.cast(values, "float32"), "int32"), 0x7FFFFFFF)
    finite = magnitude < _INFINITY
    used = ops.logical_and(finite, magnitude > 0)
    largest = ops.max(ops.where(finite, magnitude, -1))
    smallest = ops.min(ops.where(used, magnitude, _INFINITY))
    bits = _normal(magnitude, ops)
    exponent = ops.right_shift(bits, 23) - 127
    mantissa = ops.bitwise_and(bits, _MANTISSA - 1)
    counts = [magnitude == 0, magnitude > _INFINITY, magnitude == _INFINITY]
    sums, extremes = [], [smallest, largest]
    for name in FORMATS_TRIED:
        entry = FORMATS[name]
        overflow = ops.logical_and(finite, magnitude >= _overflow_bits(entry))
        counts += [overflow, ops.logical_and(used, magnitude <= _underflow_bits(entry))]
        # Squares of what is kept must not vanish beside what overflows.
        fits = ops.logical_and(used, ops.logical_not(overflow))
        unit = ops.max(ops.where(fits, exponent, LOWEST_EXPONENT))
        kept = ops.where(fits, _power_times(exponent - unit, mantissa, ops), 0.0)
        error = kept - _rounded(kept, exponent, unit, entry, ops)
        extremes.append(unit)
        sums += [ops.sum(ops.square(kept)), ops.sum(ops.square(error))]
    binned = ops.where(used, exponent - LOWEST_EXPONENT, EXPONENTS)
    return (
        ops.stack([ops.sum(ops.cast(c, "int32")) for c in counts]),
        ops.stack(extremes),
        ops.stack(sums),
        count_exponents(binned),
    )


def _normal(magnitude: Any, ops: Any) -> Any:
    """Bits in which subnormals have an exponent of their own, below zero."""
    as_number = ops.view(ops.cast(magnitude, "float32"), "int32") - 149 * _MANTISSA
    return ops.where(magnitude < _MANTISSA, as_number, magnitude)


def _power_times(exponent: Any, mantissa: Any, ops: Any) -> Any:
    """`1.mantissa × 2^exponent`, zero where float32 has no normal number for it."""
    field = ops.clip(exponent + 127, 0, 254)
    bits = ops.bitwise_or(ops.left_shift(field, 23), mantissa)
    return ops.view(ops.where(field == 0, 0, bits), "float32")


def _rounded(values: Any, exponent: Any, top: Any, entry: Format, ops: Any) -> Any:
    """Values to the nearest multiple of the format's step at their exponent, ties to even."""
    lowest = 2 - 2 ** (entry.exponent_bits - 1)
    step = ops.maximum(exponent, lowest) - entry.mantissa_bits - top
    step = ops.clip(step, -126, 126)
    zero = ops.zeros_like(step)
    steps = ops.round(values * _power_times(-step, zero, ops))
    return steps * _power_times(step, zero, ops)


def _overflow_bits(entry: Format) -> int:
    """Bits of the smallest float32 that rounds beyond the largest number of the format."""
    step = math.ldexp(entry.epsilon, math.frexp(entry.max)[1] - 1)
    # A tie goes to the even neighbour: beyond an all-ones mantissa that is the one that overflows.
    tie = _bits(entry.max + step / 2)
    return tie if entry.has_infinity else tie + 1


def _underflow_bits(entry: Format) -> int:
    """Bits of the largest float32 that rounds to zero."""
    return _bits(entry.smallest_subnormal / 2)


def _bits(value: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def _value(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<i", bits))[0])


class Summary:
    """The range of all values that were added. Counts are exact, sums are float64."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.size = 0
        self.counts = np.zeros(_COUNTS, "int64")
        self.smallest = _INFINITY
        self.largest = -1
        self.sums = np.zeros(2 * len(FORMATS_TRIED))
        self.histogram = np.zeros(EXPONENTS, "int64")

    @property
    def nonfinite(self) -> str | None:
        """`"nan"` or `"inf"` if any value is not finite."""
        if self.counts[1]:
            return "nan"
        return "inf" if self.counts[2] else None

    def add(self, partial: Partial, size: int, padding: int = 0) -> None:
        """Adds the statistics of further values.

        Args:
            partial: What `partial_statistics` returned.
            size: Number of values, padding left out.
            padding: Number of zeros that were put behind them.
        """
        counts, extremes, sums, histogram = (np.asarray(each) for each in partial)
        self.size += size
        self.counts += counts
        self.counts[0] -= padding
        self.smallest = min(self.smallest, int(extremes[0]))
        # Padding is finite: it must not pass for a value where no other is.
        largest = int(extremes[1]) if counts[1] + counts[2] < size else -1
        self.largest = max(self.largest, largest)
        units = np.ldexp(1.0, extremes[2:].astype("int64"))
        self.sums += sums.astype("float64") * np.repeat(units * units, 2)
        self.histogram += histogram[:EXPONENTS]

    def merge(self, other: "Summary") -> None:
        """Adds what another summary has seen.

        Args:
            other: Left as it is.
        """
        self.size += other.size
        self.counts += other.counts
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        self.sums += other.sums
        self.histogram += other.histogram

    def row(self, path: str, kind: str, name: str = "") -> RangeRow:
        """The range as data.

        Args:
            path: Path of the layer.
            kind: As in `RangeRow`.
            name: Name of the weight.

        Returns:
            The row.
        """
        filled = np.flatnonzero(self.histogram)
        first, last = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
        return RangeRow(
            path=path,
            kind=kind,
            name=name,
            dtype=self.dtype,
            size=self.size,
            zeros=int(self.counts[0]),
            nans=int(self.counts[1]),
            infinities=int(self.counts[2]),
            smallest=_value(self.smallest) if self.smallest < _INFINITY else None,
            largest=_value(self.largest) if self.largest >= 0 else None,
            what_if=tuple(self._what_if(index) for index in range(len(FORMATS_TRIED))),
            first_exponent=first + LOWEST_EXPONENT if filled.size else 0,
            histogram=tuple(int(count) for count in self.histogram[first:last]),
        )

    def _what_if(self, index: int) -> WhatIf:
        zeros, nans, infinities = (int(count) for count in self.counts[:3])
        overflow, underflow = (int(count) for count in self.counts[3 + 2 * index :][:2])
        finite = self.size - nans - infinities
        signal, noise = (float(each) for each in self.sums[2 * index :][:2])
        return WhatIf(
            FORMATS_TRIED[index],
            overflow / finite if finite else 0.0,
            underflow / (finite - zeros) if finite > zeros else 0.0,
            _decibels(signal, noise),
        )


def _decibels(signal: float, noise: float) -> float | None:
    if signal <= 0:
        return None
    return EXACT_DB if noise <= 0 else min(EXACT_DB, 10 * math.log10(signal / noise))
