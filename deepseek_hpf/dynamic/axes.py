"""Axes of a timeline: where a value stands, and the numbers beside it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeGuard

Kind = Literal["linear", "log2", "log10"]
_NOTHING, _BEYOND = 1e-300, 1e300  # closer to the ends of float64 its sums overflow

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TRANSFORMS: dict[Kind, Callable[[float], float]] = {
    "linear": float,
    "log2": math.log2,
    "log10": math.log10,
}


class Tick(NamedTuple):
    """A number beside an axis.

    Args:
        at: Where, 0 to 1.
        label: The number.
    """

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis from a low to a high end.

    Args:
        kind: How values are spread out along it.
        low: Its begin, after the transform.
        high: Its end, after the transform.
        ticks: Its numbers.
    """

    kind: Kind
    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float | None) -> float | None:
        """Where a value stands, 0 to 1; None where it has no place, such as NaN, or 0 on a log."""
        if not _has_place(value, self.kind):
            return None
        return (_TRANSFORMS[self.kind](value) - self.low) / (self.high - self.low)


def axis_for(values: Iterable[float | None], kind: Kind) -> Axis:
    """Makes an axis that holds all values that have a place on it.

    Args:
        values: Any; None, inf, NaN and, on a logarithmic axis, numbers of 0 and less have no place.
        kind: How they are spread out.

    Returns:
        The axis, with some room at both ends and a few round numbers.

    Example:
        >>> [tick.label for tick in axis_for([0.0, 10.0], "linear").ticks]
        ['0', '5', '10']
        >>> [tick.label for tick in axis_for([2.0**10, 2.0**16], "log2").ticks]
        ['2¹⁰', '2¹²', '2¹⁴', '2¹⁶']
    """
    transform = _TRANSFORMS[kind]
    placed = [transform(value) for value in values if _has_place(value, kind)]
    least, most = (min(placed), max(placed)) if placed else (0.0, 1.0)
    largest = max(abs(least), abs(most))
    if most - least > 1e-9 * (largest if kind == "linear" else max(largest, 1.0)):
        room = 0.06 * (most - least)
    else:
        room = 0.1 * largest if kind == "linear" and largest > _NOTHING else 1.0
    low, high = least - room, most + room
    marked = _linear(low, high) if kind == "linear" else _powers(low, high, kind)
    ticks = (Tick((at - low) / (high - low), label) for at, label in marked)
    return Axis(kind, low, high, tuple(ticks))


def step_axis(first: int, end: int) -> Axis:
    """Makes the axis of the steps, with whole numbers and no room at the ends.

    Example:
        >>> [tick.label for tick in step_axis(0, 3000).ticks]
        ['0', '1,000', '2,000', '3,000']
        >>> [tick.label for tick in step_axis(7, 7).ticks]
        ['7']
    """
    low, high = float(first), float(max(end, first + 1))
    size = max(_round_step(high - low, gaps=4), 1.0)
    numbers = [index * size for index in range(math.ceil(low / size), math.floor(end / size) + 1)]
    ticks = (Tick((at - low) / (high - low), step_label(int(at))) for at in numbers)
    return Axis("linear", low, high, tuple(ticks))


def step_label(step: int) -> str:
    """A number of steps, short where it is round.

    Example:
        >>> step_label(250), step_label(1500), step_label(20_000), step_label(1_500_000)
        ('250', '1,500', '20k', '1.5M')
    """
    for size, unit, from_on in ((10**6, "M", 10**6), (1000, "k", 10**4)):
        if step >= from_on and step * 10 % size == 0:
            return f"{step / size:,.1f}".removesuffix(".0") + unit
    return f"{step:,}"


def value_label(value: float | None, kind: Kind = "linear") -> str:
    """A value in words; powers of two as such on an axis of these."""
    if value is None or math.isnan(value):
        return "unknown" if value is None else "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if kind == "log2" and value > 0 and math.frexp(value)[0] == 0.5:
        return f"2{_raised(math.frexp(value)[1] - 1)}"
    return f"{value:.4g}"


def _has_place(value: float | None, kind: Kind) -> TypeGuard[float]:
    if value is None or not abs(value) < _BEYOND:  # NaN is not less
        return False
    return kind == "linear" or value > 0


def _round_step(length: float, gaps: int = 5) -> float:
    """A distance of 1, 2 or 5 times a power of ten, with at most so many gaps in a length."""
    least = length / gaps
    power = 10.0 ** math.floor(math.log10(least))
    return next((n * power for n in (1, 2, 5) if n * power >= least * (1 - 1e-9)), 10 * power)


def _linear(low: float, high: float) -> list[tuple[float, str]]:
    size = _round_step(high - low)
    numbers = range(math.ceil(low / size), math.floor(high / size) + 1)
    largest, decimals = max(abs(low), abs(high)), -math.floor(math.log10(size))
    if decimals <= 4 and largest < 1e6:
        form = f",.{max(decimals, 0)}f"
    else:
        form = f".{math.floor(math.log10(largest)) + decimals + 1}g"
    return [(n * size, format(n * size, form)) for n in numbers]


def _powers(low: float, high: float, kind: Kind) -> list[tuple[float, str]]:
    base = 2 if kind == "log2" else 10
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last > first:
        apart = max(round(_round_step(last - first)), 1)
        whole = range(math.ceil(first / apart) * apart, last + 1, apart)
        return [(float(e), f"{base}{_raised(e)}") for e in whole]
    transform = _TRANSFORMS[kind]
    between = _linear(float(base) ** low, float(base) ** high)
    return [(transform(value), label) for value, label in between if value > 0]


def _raised(exponent: int) -> str:
    return str(exponent).translate(_SUPERSCRIPT)
