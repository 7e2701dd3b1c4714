"""The picture of the two loss curves."""

import io
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from deepseek_hpf.demo.records import Comparison, RunResult
from deepseek_hpf.demo.summary import run_names
from deepseek_hpf.extras import import_extra


class Style(NamedTuple):
    """Colours of a picture; the two of the runs are told apart with every kind of colour vision.

    References:
        M. Okabe, K. Ito: Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
    """

    background: str
    text: str
    grid: str
    baseline: str
    policy: str


LIGHT = Style("#ffffff", "#1b1f24", "#d0d7de", "#0072b2", "#d55e00")
DARK = Style("#14181d", "#e6edf3", "#3a424c", "#56b4e9", "#e69f00")
WIDE = (8.0, 4.2)  # inches
NARROW = (4.4, 4.6)
_DOTS_PER_INCH = 160


def loss_curves(
    comparison: Comparison, *, style: Style = LIGHT, size: tuple[float, float] = WIDE
) -> bytes:
    """Draws training loss (solid) and test loss (dashed) of both runs, epoch by epoch.

    Args:
        comparison: Two finished runs.
        style: Colours.
        size: Width and height in inches.

    Returns:
        A PNG file. A loss that is not finite leaves a gap.

    Raises:
        ConfigError: matplotlib, of the extra `report`, is not installed.
    """
    figures = import_extra("matplotlib.figure", "report")
    figure = figures.Figure(
        size, dpi=_DOTS_PER_INCH, layout="constrained", facecolor=style.background
    )
    axes = figure.subplots()
    names = run_names(comparison)
    _draw(axes, comparison.baseline, names[0], color=style.baseline, marker="o")
    _draw(axes, comparison.policy, names[1], color=style.policy, marker="s")
    _dress(axes, style)
    if any(0 < loss < math.inf for loss in _losses(comparison)):
        _make_logarithmic(axes)
    axes.set_title(
        f"ResNet-20 on {comparison.settings.dataset}", color=style.text, parse_math=False
    )
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor=style.background)
    return file.getvalue()


def _draw(axes: Any, run: RunResult, name: str, *, color: str, marker: str) -> None:
    epochs = [done.epoch + 1 for done in run.epochs]
    common = {"color": color, "marker": marker, "markersize": 4}
    axes.plot(epochs, [done.loss for done in run.epochs], label=f"{name}, training", **common)
    axes.plot(
        epochs,
        [done.test_loss for done in run.epochs],
        label=f"{name}, test",
        linestyle="--",
        markerfacecolor="none",
        **common,
    )


def _dress(axes: Any, style: Style) -> None:
    ticker = import_extra("matplotlib.ticker", "report")
    axes.set_facecolor(style.background)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_xlabel("epoch", color=style.text)
    axes.set_ylabel("loss (cross entropy and weight decay, nats)", color=style.text)
    axes.grid(color=style.grid, linewidth=0.6)
    axes.tick_params(which="both", colors=style.text)
    for spine in axes.spines.values():
        spine.set_color(style.grid)
    axes.legend(facecolor=style.background, edgecolor=style.grid, labelcolor=style.text, fontsize=8)


def _losses(comparison: Comparison) -> Iterator[float]:
    for run in (comparison.baseline, comparison.policy):
        for done in run.epochs:
            yield from (done.loss, done.test_loss)


def _make_logarithmic(axes: Any) -> None:
    ticker = import_extra("matplotlib.ticker", "report")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
