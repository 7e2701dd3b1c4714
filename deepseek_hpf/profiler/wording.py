"""Figures of a profile in words: one wording for the console and for the page."""

import json

from deepseek_hpf.profiler.findings import Census, Conflict, RangeRow, WhatIf
from deepseek_hpf.profiler.report import ProfileReport

NOT_KNOWN = "–"  # noqa: RUF001

_STEPS = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))


def in_bytes(count: float) -> str:
    """Bytes with a binary unit.

    Example:
        >>> in_bytes(0), in_bytes(900), in_bytes(1536), in_bytes(3 * 2**20)
        ('0 B', '900 B', '1.5 KiB', '3.0 MiB')
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"


def in_flops(count: float) -> str:
    """Floating-point operations with a decimal unit.

    Example:
        >>> in_flops(0), in_flops(999), in_flops(1.25e9)
        ('0', '999', '1.25 G')
    """
    unit, size = next((step for step in reversed(_STEPS) if abs(count) >= step[1]), _STEPS[0])
    return f"{count / size:.3g} {unit}".strip()


def in_seconds(seconds: float | None) -> str:
    """Seconds, in the unit that suits.

    Example:
        >>> in_seconds(None), in_seconds(2.5), in_seconds(0.0031), in_seconds(2e-6)
        ('–', '2.50 s', '3.10 ms', '2.0 µs')
    """
    if seconds is None:
        return NOT_KNOWN
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


def in_percent(share: float) -> str:
    """A share as per cent; what is more than nothing never reads as nothing.

    Example:
        >>> in_percent(0), in_percent(1e-7), in_percent(0.251), in_percent(1)
        ('0 %', '<0.01 %', '25.1 %', '100 %')
    """
    if share in (0, 1):
        return f"{share * 100:.0f} %"
    return "<0.01 %" if share < 1e-4 else f"{share * 100:.3g} %"


def magnitude(value: float | None) -> str:
    """A magnitude in three digits.

    Example:
        >>> magnitude(None), magnitude(0.000012345), magnitude(65504.0)
        ('–', '1.23e-05', '6.55e+04')
    """
    return NOT_KNOWN if value is None else f"{value:.3g}"


def rules_text(conflict: Conflict) -> str:
    """What to add to `rules` in the configuration, as JSON; empty where no rule helps.

    Example:
        >>> rules = ({"layers": "a", "policy": "float32"}, {"layers": "b", "policy": "float32"})
        >>> conflict = Conflict("float32_island", "a", "Dense", (), "", 0, 0.0, rules, "")
        >>> print(rules_text(conflict))
        {"layers": "a", "policy": "float32"},
        {"layers": "b", "policy": "float32"}
    """
    return ",\n".join(json.dumps(dict(rule), ensure_ascii=False) for rule in conflict.rules)


def what_if_text(entry: WhatIf) -> str:
    """What a format would make of the values, in a few words.

    Example:
        >>> what_if_text(WhatIf("float16", 0.5, 0.0, 12.34))
        'overflows 50 %, 12 dB'
        >>> what_if_text(WhatIf("bfloat16", 0.0, 0.0, 52.0))
        '52 dB'
    """
    parts = []
    if entry.overflow:
        parts.append(f"overflows {in_percent(entry.overflow)}")
    if entry.underflow:
        parts.append(f"underflows {in_percent(entry.underflow)}")
    parts.append(NOT_KNOWN if entry.noise_db is None else f"{entry.noise_db:.0f} dB")
    return ", ".join(parts)


def risk(row: RangeRow) -> float:
    """How badly a row fares in 16 bits, for "worst first": shares lost in its better format."""
    if row.nans or row.infinities:
        return 10.0
    lost = [
        entry.overflow * 2 + entry.underflow
        for entry in row.what_if
        if entry.dtype in ("float16", "bfloat16")
    ]
    return min(lost, default=0.0) + 1e-3 * max(lost, default=0.0)


def headline(report: ProfileReport) -> list[str]:
    """The summary: sentences on conflicts, non-finite values, arithmetic and casts."""
    errors = sum(conflict.severity == "error" for conflict in report.conflicts)
    waste = len(report.conflicts) - errors
    sentences = [
        f"{_count(errors, 'conflict')} that put{'s' if errors == 1 else ''} numbers at risk, "
        f"{waste} that waste{'s' if waste == 1 else ''} time."
        if report.conflicts
        else "No conflicts."
    ]
    found = report.nonfinite
    if found is not None:
        sentences.append(
            f"The first non-finite value is {found.value} in step {found.step}, made by "
            f"{found.operation} at {found.path} ({found.phase})"
            f"{f': {found.reason}' if found.reason else ''}."
        )
    elif report.ranges:
        sentences.append("All values that were looked at are finite.")
    if any(conflict.rules for conflict in report.conflicts):
        sentences.append(
            f'The rules to write are for a configuration of "policy": "{report.policy}".'
        )
    return [*sentences, *census_sentences(report.census)]


def census_sentences(census: Census) -> list[str]:
    """Share of arithmetic in each dtype, and casts, in words; none where nothing was counted.

    Example:
        >>> from deepseek_hpf.profiler.findings import CastCount, OperationCount
        >>> product = OperationCount("MatMul", "bfloat16", 2, 4096, 1e6)
        >>> cast = CastCount("float32", "bfloat16", 3, 2048)
        >>> for sentence in census_sentences(Census("made up", (product,), (cast,))):
        ...     print(sentence)
        Arithmetic: 100 % bfloat16.
        3 casts between float dtypes a step, 2.0 KiB read and written.
    """
    sentences = []
    shares = census.arithmetic_shares()
    if shares:
        parts = ", ".join(f"{in_percent(share)} {dtype}" for dtype, share in shares.items())
        sentences.append(f"Arithmetic: {parts}.")
    if census.operations or census.casts:
        moved = in_bytes(sum(cast.bytes for cast in census.casts))
        count = _count(census.cast_count, "cast")
        sentences.append(f"{count} between float dtypes a step, {moved} read and written.")
    return sentences


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
