"""Events in words: one wording for the console, the picture and the page."""

import math
from typing import NamedTuple

from deepseek_hpf.dynamic.axes import value_label
from deepseek_hpf.dynamic.event_lines import (
    DecisionLine,
    EventLine,
    OverflowLine,
    ScaleLine,
    StartLine,
)
from deepseek_hpf.dynamic.recorded_run import RecordedRun
from deepseek_hpf.dynamic.run_summary import RunSummary, Stay
from deepseek_hpf.profiler.wording import NOT_KNOWN, in_percent, in_seconds

CAUSES = {
    "loss_scale": "the loss scale was too large",
    "activation": "overflow at any loss scale",
    "accumulation": "the gradient overflowed as the weight's dtype sums it",
    "data": "bad data",
    "unknown": "cause not found",
}
_LEVELS = {"critical": "critical layers float32", "float32": "float32"}


class Told(NamedTuple):
    """An event in words.

    Args:
        what: What happened, e.g. `"promoted to float32"`.
        where: The block or layer; empty where the whole model is meant.
        why: The reason.
    """

    what: str
    where: str
    why: str


def level_name(level: str, policy: str) -> str:
    """A level of precision in words.

    Args:
        level: As in the file.
        policy: The run's base policy.

    Example:
        >>> level_name("base", "mixed_float16"), level_name("critical", "mixed_float16")
        ('mixed_float16', 'critical layers float32')
    """
    return policy if level == "base" else _LEVELS.get(level, level)


def tell(event: EventLine, run: RecordedRun) -> Told:
    """Puts an event in words.

    Args:
        event: One of the run's.
        run: The run.

    Returns:
        Its words.
    """
    if isinstance(event, DecisionLine):
        return Told(_decided(event, run.starts[0].policy), event.block or "", event.reason)
    if isinstance(event, OverflowLine):
        return Told("step skipped", event.layer or "", event.reason or CAUSES.get(event.cause, ""))
    if isinstance(event, ScaleLine):
        return Told(f"loss scale {value_label(event.scale, 'log2')}", "", event.reason)
    if isinstance(event, StartLine):
        return Told("resumed" if event.resumed else "training goes on", "", "")
    return Told(event.kind, "", "")


def sentence(event: EventLine, run: RecordedRun) -> str:
    """Puts an event in one line.

    Args:
        event: One of the run's.
        run: The run.

    Returns:
        Its step and its words.
    """
    told = tell(event, run)
    where = f" {told.where}" if told.where else ""
    return f"Step {event.step:,}:{where} {told.what}{f': {told.why}' if told.why else ''}"


def _decided(event: DecisionLine, policy: str) -> str:
    level = event.precision.get(event.block or "")
    if level is not None and event.kind in ("promote", "demote"):
        return f"{event.kind}d to {level_name(level, policy)}"
    return {"phase": "phase of the schedule", "explore": "plan tried", "settle": "best plan"}.get(
        event.kind, f"{event.kind}d"
    )


def summary_text(summary: RunSummary) -> list[str]:
    """Sums a run up in sentences.

    Args:
        summary: Its figures.

    Returns:
        One sentence or two.
    """
    took = "" if summary.seconds is None else f" in {in_time(summary.seconds)}"
    sentences = [
        f"{_counted(summary.steps, 'step')}{took}, {summary.skipped:,} skipped. "
        f"{_counted(summary.switches, 'switch', 'switches')} of the precision, "
        f"{_counted(summary.plans, 'plan')}."
    ]
    if summary.resumes:
        sentences.append(f"Resumed {_counted(summary.resumes, 'time')}.")
    return sentences


def stay_text(stay: Stay, steps: int) -> str:
    """How long a block was in a precision, as a share of the steps and as time.

    Args:
        stay: Its steps and time.
        steps: Steps of the run.

    Example:
        >>> stay_text(Stay(25, 90.0), 100), stay_text(Stay(25, None), 100)
        ('25 %, 1 min 30 s', '25 %')
    """
    share = in_percent(stay.steps / steps) if steps else in_percent(0)
    return share if stay.seconds is None else f"{share}, {in_time(stay.seconds)}"


def in_time(seconds: float) -> str:
    """A time in the units that suit.

    Example:
        >>> in_time(0.25), in_time(61), in_time(90_000)
        ('250.00 ms', '1 min 1 s', '25 h 0 min')
    """
    if not math.isfinite(seconds):
        return NOT_KNOWN
    if seconds < 60:
        return in_seconds(seconds)
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
