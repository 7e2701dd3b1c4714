"""The page of a run: one HTML file that needs nothing else, on wide and narrow screens."""

import base64
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any

from deepseek_hpf.dynamic import timeline_looks as looks
from deepseek_hpf.dynamic.axes import Tick, value_label
from deepseek_hpf.dynamic.event_wording import level_name, stay_text, summary_text, tell
from deepseek_hpf.dynamic.recorded_run import RecordedRun
from deepseek_hpf.dynamic.run_summary import summary_of
from deepseek_hpf.dynamic.timeline import MOST_POINTS, Curve, timeline_of
from deepseek_hpf.extras import page_environment

WIDTH, HEIGHT = 1000, 100  # of a drawing, which is stretched to the screen
MOST_ROWS = 2000


def render_timeline(run: RecordedRun) -> str:
    """Returns a run's timeline and its decisions as one HTML page.

    All text is escaped; the only script is the page's own, which a content security policy names by
    its hash: a script that came in by a name would not run.

    Args:
        run: The run, or a part of it.

    Returns:
        The HTML, without a reference to anything outside.

    Raises:
        ConfigError: jinja2, of the extra `report`, is not installed.
    """
    environment = _environment()
    # As it stands: the loader's source, no template.
    script = environment.loader.get_source(environment, "timeline_script.html.j2")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    timeline, summary = timeline_of(run), summary_of(run)
    policy = run.starts[-1].policy
    rows = [(event.step, tell(event, run)) for event in run.events[:MOST_ROWS]]
    return environment.get_template("timeline.html.j2").render(
        timeline=timeline,
        colours=looks.level_colours(timeline.levels),
        looks=looks,
        width=WIDTH,
        height=HEIGHT,
        readings=json.dumps(_readings(run)),
        rows=rows,
        left_out=len(run.events) - len(rows),
        sentences=[*summary_text(summary), *run.notes],
        stays={
            block: [
                (level, level_name(level, policy), stay_text(stay, summary.steps))
                for level, stay in levels.items()
            ]
            for block, levels in summary.stays.items()
        },
        script=script,
        script_hash=digest,
    )


def curve_path(curve: Curve) -> str:
    """SVG path of the pieces of a curve that are lines."""
    pieces = (piece for piece in curve.pieces() if len(piece) > 1)
    return "".join(f"M{'L'.join(_placed(x, y) for x, y in piece)}" for piece in pieces)


def curve_dots(curve: Curve) -> str:
    """SVG path of the points that stand alone, which show by the round ends of the line."""
    return "".join(f"M{_placed(*piece[0])}h0" for piece in curve.pieces() if len(piece) == 1)


def rules(ticks: Iterable[Tick]) -> str:
    """SVG path of the lines across at the numbers of an axis."""
    return "".join(f"M0 {(1 - tick.at) * HEIGHT:.1f}H{WIDTH}" for tick in ticks)


def verticals(places: Iterable[float]) -> str:
    """SVG path of lines from the top to the bottom."""
    return "".join(f"M{x * WIDTH:.1f} 0V{HEIGHT}" for x in places)


def percent(share: float) -> str:
    """A share as a length of CSS."""
    return f"{100 * share:.2f}%"


def _placed(x: float, y: float) -> str:
    return f"{x * WIDTH:.1f} {(1 - y) * HEIGHT:.1f}"


def _readings(run: RecordedRun) -> list[list[Any]]:
    """What is told where the pointer is: share of the width, and the figures there."""
    every = -(-len(run.windows) // MOST_POINTS) or 1
    length = max(run.end - run.first, 1)
    return [
        [
            round((window.step - run.first) / length, 4),
            f"Step {window.step:,}: loss {value_label(window.loss)}, "
            f"scale {value_label(window.scale, 'log2')}, "
            f"gradient norm {value_label(window.gradient_norm)}",
        ]
        for window in run.windows[::every]
    ]


@functools.cache
def _environment() -> Any:
    environment = page_environment("deepseek_hpf.dynamic")
    environment.filters.update(
        path=curve_path, dots=curve_dots, rules=rules, verticals=verticals, css=percent
    )
    return environment
