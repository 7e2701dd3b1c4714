"""What the times of a benchmark say: ratios within rounds, means over models. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deepseek_hpf.bench.records import BFLOAT16, FLOAT32, OURS, ModelResult
from deepseek_hpf.timing import Spread, Timings

NOT_KNOWN = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Worst:
    """The model on which ours does worst: its name, the best peer there, the ratio to it."""

    model: str
    peer: str
    ratio: float


@dataclass(frozen=True)
class SuiteSummary:
    """Ours over several models.

    Args:
        models: How many have both float32 and ours.
        over_float32: Geometric mean of the ratios to Keras's float32; None without any.
        over_bfloat16: The same to Keras's `mixed_bfloat16`.
        over_best_peer: The same to the best peer of each model.
        worst: Where the ratio to the best peer is least.
    """

    models: int
    over_float32: float | None
    over_bfloat16: float | None
    over_best_peer: float | None
    worst: Worst | None


def names(result: ModelResult) -> list[str]:
    """Returns the contenders that were timed, in order."""
    return [each.name for each in result.contenders if seconds(result, each.name) is not None]


def seconds(result: ModelResult, name: str) -> Spread | None:
    """Returns the seconds of a contender's step, from the group with the most rounds.

    Args:
        result: Of a model.
        name: A contender.

    Returns:
        Median and quartiles, or None if it was not timed.
    """
    rounds = [turn[name] for turn in result.turns if name in turn]
    return Spread.of(max(rounds, key=len)) if rounds else None


def speedup(result: ModelResult, name: str, over: str) -> Spread | None:
    """Returns how many times as fast a contender is as another.

    Args:
        result: Of a model.
        name: The contender.
        over: The other.

    Returns:
        Median and quartiles of the ratios within each round; None where the two were never timed in
        turns.
    """
    for turn in result.turns:
        if name in turn and over in turn:
            return Timings(turn).speedup(name, over=over)
    return None


def best_peer(result: ModelResult) -> str | None:
    """Returns the fastest contender that is not ours, by its median; None if there is none."""
    medians = {name: seconds(result, name) for name in names(result) if name != OURS}
    known = {name: spread.median for name, spread in medians.items() if spread is not None}
    return min(known, key=lambda name: known[name]) if known else None


def over_best_peer(result: ModelResult) -> Spread | None:
    """Returns how many times as fast ours is as the best peer; None where either is missing."""
    peer = best_peer(result)
    return None if peer is None else speedup(result, OURS, peer)


def geometric_mean(values: Sequence[float]) -> float | None:
    """Returns the mean that suits ratios.

    Args:
        values: Positive.

    Returns:
        The mean, or None of nothing.

    Example:
        >>> geometric_mean([0.5, 2.0])
        1.0
    """
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def summarize(results: Iterable[ModelResult]) -> SuiteSummary:
    """Returns what comes out over several models.

    Args:
        results: On one machine with one back end.

    Returns:
        The means and the worst.
    """
    measured = list(results)
    low = _medians(speedup(each, OURS, BFLOAT16) for each in measured)
    base = _medians(speedup(each, OURS, FLOAT32) for each in measured)
    best = _medians(over_best_peer(each) for each in measured)
    worst = [
        Worst(each.model, best_peer(each) or "", ratio.median)
        for each in measured
        if (ratio := over_best_peer(each)) is not None
    ]
    return SuiteSummary(
        models=len(base),
        over_float32=geometric_mean(base),
        over_bfloat16=geometric_mean(low),
        over_best_peer=geometric_mean(best),
        worst=min(worst, key=lambda each: each.ratio, default=None),
    )


def sentences(summary: SuiteSummary) -> list[str]:
    """Returns the summary in words; empty for fewer than two models."""
    if summary.models < 2:
        return []
    said = [
        f"Geometric mean over {summary.models} models: {OURS} is {_ratio(summary.over_float32)} "
        f"as fast as {FLOAT32}, {_ratio(summary.over_bfloat16)} as fast as {BFLOAT16}, and "
        f"{_ratio(summary.over_best_peer)} as fast as the best peer of each model."
    ]
    if summary.worst is not None:
        said.append(
            f"Worst model: {summary.worst.model}, {_ratio(summary.worst.ratio)} as fast as "
            f"{summary.worst.peer}."
        )
    return said


def in_groups(results: Iterable[ModelResult]) -> list[list[ModelResult]]:
    """Returns the results by back end, device and versions; of one measured twice, the last.

    Args:
        results: In any order.

    Returns:
        Groups of what can be compared, in order of first appearance.
    """
    groups: dict[tuple[object, ...], dict[object, ModelResult]] = {}
    for result in results:
        machine = result.machine
        place = (machine.backend, machine.devices, tuple(sorted(machine.versions.items())))
        group = groups.setdefault(place, {})
        group[(result.target, result.settings.batch_size)] = result
    return [list(group.values()) for group in groups.values()]


def _medians(spreads: Iterable[Spread | None]) -> list[float]:
    return [spread.median for spread in spreads if spread is not None]


def _ratio(value: float | None) -> str:
    return NOT_KNOWN if value is None else f"{value:.2f} times"
