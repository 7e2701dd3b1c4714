"""The picture of a tuning: time against error."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.files import StrPath, write_bytes_atomically
from deepseek_hpf.tuning.candidates import Candidate

if TYPE_CHECKING:
    from deepseek_hpf.tuning.result import TuningResult

KINDS = ("png", "svg", "pdf")
_POINTS_A_LINE = 13
_NEAR = 0.25  # of the width: within it a name reaches into the next
_NEAR_DECADES = 0.4
_SMALLEST = 1e-8  # where a candidate without any error is drawn


def draw(result: "TuningResult", path: StrPath) -> None:
    """Draws the candidates that were timed: milliseconds across, relative error of the loss up.

    Args:
        result: The result.
        path: Of a file; its ending says what kind.

    Raises:
        ConfigError: matplotlib is not installed, or the ending is none of `KINDS`.
        OSError: The place cannot be written.
    """
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise ConfigError(f"expected a file that ends in {', '.join(KINDS)}. Received: {path}")
    figures = import_extra("matplotlib.figure", "report")
    figure = figures.Figure((8.0, 4.5), dpi=160, layout="constrained")
    axes = figure.subplots()
    shown = [c for c in result.candidates if c.seconds and _error(c) is not None]
    front = pareto_front(shown)
    axes.step(_milliseconds(front), list(map(_error, front)), where="post", color="#0072b2")
    times = [time for each in shown for time in _milliseconds([each])]
    middle = (min(times) + max(times)) / 2 if times else 0.0
    for each, level in zip(shown, _levels(shown), strict=True):
        is_best = each.name == result.best.name
        axes.plot(
            _milliseconds([each]),
            [_error(each)],
            marker="*" if is_best else "o",
            markersize=14 if is_best else 7,
            color="#d55e00" if is_best else "#0072b2",
            linestyle="none",
        )
        time = _milliseconds([each])[0]
        is_right = time > middle  # there a name goes to the left, so that it stays within
        axes.annotate(
            each.name,
            (time, _error(each)),
            xytext=(-6 if is_right else 6, 8 + _POINTS_A_LINE * level),
            textcoords="offset points",
            horizontalalignment="right" if is_right else "left",
        )
    axes.axhline(result.error_budget, color="#6e7781", linestyle="--", label="error budget")
    axes.set(
        yscale="log",
        xlabel="a training step, ms",
        ylabel="relative error of the loss",
        title=f"{result.model} on {result.device}, {result.backend}",
    )
    axes.legend()
    axes.margins(x=0.15)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    write_bytes_atomically(path, buffer.getvalue())


def pareto_front(candidates: list[Candidate]) -> list[Candidate]:
    """Keeps the candidates that no other beats in both time and error.

    Args:
        candidates: Timed ones, with their errors.

    Returns:
        The front, the fastest first.

    Example:
        >>> from dataclasses import replace
        >>> from deepseek_hpf.tuning.candidates import blanket
        >>> exact = replace(blanket("float32", kernels=False), seconds=2.0, loss_error=0.0)
        >>> low = replace(blanket("mixed_bfloat16", kernels=False), seconds=1.0, loss_error=0.1)
        >>> slow = replace(blanket("mixed_float16", kernels=False), seconds=3.0, loss_error=0.1)
        >>> [each.name for each in pareto_front([exact, low, slow])]
        ['mixed_bfloat16', 'float32']
    """
    front: list[Candidate] = []
    for each in sorted(candidates, key=lambda c: (c.seconds or math.inf, _error(c) or math.inf)):
        if not front or (_error(each) or 0.0) < (_error(front[-1]) or 0.0):
            front.append(each)
    return front


def _error(candidate: Candidate) -> float | None:
    if candidate.loss_error is None or not math.isfinite(candidate.loss_error):
        return None
    return max(candidate.loss_error, _SMALLEST)


def _milliseconds(candidates: list[Candidate]) -> list[float]:
    return [1e3 * (each.seconds or 0.0) for each in candidates]


def _levels(shown: list[Candidate]) -> list[int]:
    """Which line above its point a name is written on, so that it covers no other name."""
    points = [
        (time, math.log10(_error(each) or _SMALLEST))
        for each, time in zip(shown, _milliseconds(shown), strict=True)
    ]
    width = max((x for x, _ in points), default=0.0) - min((x for x, _ in points), default=0.0)
    levels: list[int] = []
    for index, (x, y) in enumerate(points):
        taken = {
            levels[before]
            for before, (other, error) in enumerate(points[:index])
            if abs(x - other) <= _NEAR * width and abs(y - error) <= _NEAR_DECADES
        }
        levels.append(next(line for line in range(len(points)) if line not in taken))
    return levels
