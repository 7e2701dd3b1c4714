"""The bar chart of a benchmark."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from deepseek_hpf.bench.records import CONTENDERS, FLOAT32, ModelResult
from deepseek_hpf.bench.summary import in_groups, speedup
from deepseek_hpf.bench.table import contenders
from deepseek_hpf.extras import import_extra
from deepseek_hpf.scheduling.auto import BACKEND_NAMES

# Okabe and Ito's colours, told apart with every kind of colour vision.
_COLOURS = dict(
    zip(CONTENDERS, ("#999999", "#56b4e9", "#0072b2", "#009e73", "#d55e00"), strict=True)
)
_INCHES_A_MODEL = 1.05
_MANY_MODELS = 8  # from here on the chart is wide enough for a legend in one line
_LETTERS_A_LINE = 14
_DOTS_PER_INCH = 160


def bar_chart(results: Sequence[ModelResult]) -> bytes:
    """Draws the ratio to float32 of every contender on every model, with the quartiles.

    Args:
        results: Of any back ends and machines; each has a chart of its own, one below the other.

    Returns:
        A PNG file. What was not timed has no bar.

    Raises:
        ConfigError: matplotlib, of the extra `report`, is not installed.
    """
    figures = import_extra("matplotlib.figure", "report")
    groups = in_groups(results)
    widest = max((len(group) for group in groups), default=1)
    size = (max(6.6, 1.2 + _INCHES_A_MODEL * widest), 4.2 * max(len(groups), 1))
    figure = figures.Figure(size, dpi=_DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(max(len(groups), 1), 1, squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=False):
        _draw(axes, group)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw(axes: Any, group: Sequence[ModelResult]) -> None:
    machine = group[0].machine
    names = contenders(group)
    width = 0.8 / max(len(names), 1)
    for index, name in enumerate(names):
        found = {
            place: spread
            for place, result in enumerate(group)
            if (spread := speedup(result, name, FLOAT32)) is not None
        }
        offset = (index - (len(names) - 1) / 2) * width
        axes.bar(
            [place + offset for place in found],
            [spread.median for spread in found.values()],
            width,
            yerr=[
                [spread.median - spread.low for spread in found.values()],
                [spread.high - spread.median for spread in found.values()],
            ],
            error_kw={"linewidth": 0.8},
            label=name,
            color=_COLOURS.get(name),
        )
    _dress(axes, group)
    backend = BACKEND_NAMES.get(machine.backend, machine.backend)
    axes.set_title(f"{backend}, {' and '.join(machine.devices)}", fontsize=10, parse_math=False)


def _dress(axes: Any, group: Sequence[ModelResult]) -> None:
    axes.axhline(1.0, color="#1b1f24", linewidth=0.8)
    axes.set_xticks(range(len(group)), [_lines(result.model) for result in group])
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylabel(f"times as fast as {FLOAT32}")
    axes.grid(axis="y", color="#d0d7de", linewidth=0.6)
    axes.set_axisbelow(True)
    columns = 5 if len(group) >= _MANY_MODELS else 3
    axes.legend(
        fontsize=8.5, ncols=columns, loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False
    )


def _lines(model: str) -> str:
    """A model's name in lines that leave its neighbours theirs."""
    parts = (
        textwrap.wrap(part, _LETTERS_A_LINE, break_long_words=False) for part in model.split(", ")
    )
    return "\n".join(line for part in parts for line in part)
