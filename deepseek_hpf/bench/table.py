"""One model or many as the rows of a table: one source for the terminal and for the page."""

from collections.abc import Callable, Sequence

from deepseek_hpf.bench.records import CONTENDERS, FLOAT32, OURS, ContenderResult, ModelResult
from deepseek_hpf.bench.summary import NOT_KNOWN, best_peer, seconds, speedup
from deepseek_hpf.timing import Spread

MODEL_COLUMNS = ("contender", "seconds a step", "over float32", "over the best peer", "peak memory")
FAILED = "failed"


def model_rows(result: ModelResult) -> list[tuple[str, ...]]:
    """Returns a line for each contender of a model, for `MODEL_COLUMNS`.

    Args:
        result: Of the model.

    Returns:
        Times with their quartiles; ratios above 1 where the contender is faster.
    """
    peer = best_peer(result)
    return [_model_row(result, each, peer) for each in result.contenders]


def suite_columns(results: Sequence[ModelResult]) -> list[str]:
    """Returns the heads of `suite_rows`: model, float32's time, a ratio for each other contender.

    Args:
        results: Of one group.

    Returns:
        The heads.
    """
    return [
        "model",
        f"{FLOAT32}, s a step",
        *(name for name in contenders(results) if name != FLOAT32),
        f"{OURS} over the best peer",
    ]


def suite_rows(results: Sequence[ModelResult], *, quartiles: bool) -> list[list[str]]:
    """Returns a line for each model: ratios to float32 in the same rounds, above 1 if faster.

    Args:
        results: Of one group.
        quartiles: Whether to give them with each ratio.

    Returns:
        Cells for `suite_columns`.
    """
    others = [name for name in contenders(results) if name != FLOAT32]
    show = ratio if quartiles else median
    return [_suite_row(result, others, show) for result in results]


def contenders(results: Sequence[ModelResult]) -> list[str]:
    """Returns all contenders of some models: those of `CONTENDERS` in that order, then others."""
    there = {each.name: None for result in results for each in result.contenders}
    known = [name for name in CONTENDERS if name in there]
    return known + [name for name in there if name not in CONTENDERS]


def notes(result: ModelResult) -> list[str]:
    """Returns what has to be said beside a model's figures: failures, and what ours trains with."""
    if result.failure:
        return [f"failed: {result.failure}"]
    said = []
    for each in result.contenders:
        if each.failure:
            said.append(f"{each.name} failed: {each.failure}")
        elif each.note:
            said.append(f"{each.name}: {each.note}")
    return said


def memory(result: ModelResult, name: str) -> str:
    """Returns the peak memory of a contender's step, in words."""
    found = next((each.peak_memory for each in result.contenders if each.name == name), None)
    return "not told" if found is None else f"{found / 2**20:,.0f} MiB"


def ratio(spread: Spread | None) -> str:
    """Returns `1.53 (1.50 to 1.57)`: median and quartiles."""
    if spread is None:
        return NOT_KNOWN
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"


def median(spread: Spread | None) -> str:
    """Returns `1.53`: the median alone."""
    return NOT_KNOWN if spread is None else f"{spread.median:.2f}"


def time(spread: Spread | None) -> str:
    """Returns the median in seconds, to three digits."""
    return NOT_KNOWN if spread is None else f"{spread.median:.3g}"


def _model_row(result: ModelResult, each: ContenderResult, peer: str | None) -> tuple[str, ...]:
    if each.failure:
        return (each.name, FAILED, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN)
    spread = seconds(result, each.name)
    shown = time(spread)
    if spread is not None:
        shown += f" ({spread.low:.3g} to {spread.high:.3g})"
    over = None if peer is None else speedup(result, each.name, peer)
    return (
        each.name,
        shown,
        ratio(speedup(result, each.name, FLOAT32)),
        ratio(over),
        memory(result, each.name),
    )


def _suite_row(
    result: ModelResult, others: Sequence[str], show: Callable[[Spread | None], str]
) -> list[str]:
    failed = {each.name for each in result.contenders if each.failure}
    if result.failure:
        return [result.model, FAILED, *(NOT_KNOWN for _ in others), NOT_KNOWN]
    ratios = [FAILED if name in failed else show(speedup(result, name, FLOAT32)) for name in others]
    peer = best_peer(result)
    best = None if peer is None else speedup(result, OURS, peer)
    named = f" ({peer})" if best is not None else ""
    base = FAILED if FLOAT32 in failed else time(seconds(result, FLOAT32))
    return [result.model, base, *ratios, f"{median(best)}{named}"]
