"""The page: one HTML file that needs nothing else, for light and dark, wide and narrow screens."""

import base64
import functools
import hashlib
import math
from typing import Any

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.extras import page_environment
from deepseek_hpf.profiler import page_chain, wording
from deepseek_hpf.profiler.findings import FORMATS_TRIED, RangeRow
from deepseek_hpf.profiler.report import ProfileReport

# Told apart by colour-blind eyes (after Okabe and Ito), of contrast 3 or more to the ground. The
# dtype's name stands beside the colour everywhere.
BACKGROUNDS = {"light": "#ffffff", "dark": "#14181d"}
COLOURS = {
    "float64": ("#5b3a8c", "#c3a6f2"),
    "float32": ("#0072b2", "#56b4e9"),
    "bfloat16": ("#a85a00", "#e69f00"),
    "float16": ("#a8457f", "#e08fc0"),
    "float8": ("#00795a", "#2fc59b"),
    "other": ("#57606a", "#9aa4af"),
}
PLOT_WIDTH, PLOT_HEIGHT, _BARS = 220, 40, 26
LOWEST, HIGHEST = -48, 32
_NARROW_FORMATS = ("float16", "float8_e5m2", "float8_e4m3fn")


def render_page(report: ProfileReport) -> str:
    """Returns the profile as one HTML page.

    All text is escaped; the only script is the page's own, which a content security policy names by
    its hash: a script that came in by a layer's name would not run.

    Args:
        report: The profile.

    Returns:
        The HTML, without a reference to anything outside.

    Raises:
        ConfigError: jinja2, of the extra `report`, is not installed.
    """
    environment = _environment()
    # As it stands: the loader's source, no template.
    script = environment.loader.get_source(environment, "page_script.html.j2")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        report=report,
        chain=page_chain.chain_of(report),
        layout=page_chain,
        conflicts=report.conflicts,
        ranges=sorted(report.ranges, key=wording.risk, reverse=True),
        formats=[(name, "number words") for name in FORMATS_TRIED],
        headline=wording.headline(report),
        shares=report.census.arithmetic_shares(),
        colours=COLOURS,
        backgrounds=BACKGROUNDS,
        plot={"width": PLOT_WIDTH, "height": PLOT_HEIGHT, "bars": _BARS, "spans": format_spans()},
        script=script,
        script_hash=digest,
    )


def format_spans() -> list[dict[str, Any]]:
    """Where the narrow formats begin and end on the axis of the range plots, in pixels."""
    return [
        {
            "name": name,
            "left": _across(math.log2(FORMATS[name].smallest_subnormal)),
            "normal": _across(math.log2(FORMATS[name].smallest_normal)),
            "right": _across(math.log2(FORMATS[name].max)),
        }
        for name in _NARROW_FORMATS
    ]


def histogram_path(row: RangeRow) -> str:
    """SVG path of a histogram of magnitudes by power of two; what is off the axis is at its end.

    Args:
        row: The range.

    Returns:
        Path data of closed bars; empty where there is no number to show.
    """
    bins: dict[int, int] = {}
    for index, count in enumerate(row.histogram):
        exponent = min(max(row.first_exponent + index, LOWEST), HIGHEST - 1)
        bins[exponent] = bins.get(exponent, 0) + count
    tallest = max(bins.values(), default=0)
    wide = _across(LOWEST + 1)
    bars = []
    for exponent, count in sorted(bins.items()):
        if count:
            height = max(count / tallest * (_BARS - 2), 0.8)
            bars.append(f"M{_across(exponent):.1f} {_BARS}v{-height:.1f}h{wide:.1f}v{height:.1f}z")
    return "".join(bars)


def _across(exponent: float) -> float:
    return round((exponent - LOWEST) / (HIGHEST - LOWEST) * PLOT_WIDTH, 1)


def colour_of(dtype: str) -> str:
    """Name of the colour of a dtype, a key of `COLOURS`."""
    if dtype.startswith("float8"):
        return "float8"
    return dtype if dtype in COLOURS else "other"


@functools.cache
def _environment() -> Any:
    environment = page_environment("deepseek_hpf.profiler")
    environment.filters.update(
        bytes=wording.in_bytes,
        flops=wording.in_flops,
        seconds=wording.in_seconds,
        percent=wording.in_percent,
        magnitude=wording.magnitude,
        rules=wording.rules_text,
        what_if=wording.what_if_text,
        histogram=histogram_path,
        colour=colour_of,
    )
    return environment
