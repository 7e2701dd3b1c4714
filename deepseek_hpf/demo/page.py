"""The page: one HTML file that needs nothing else."""

import base64

from deepseek_hpf.demo.plots import DARK, LIGHT, NARROW, WIDE, loss_curves
from deepseek_hpf.demo.records import Comparison
from deepseek_hpf.demo.summary import run_names, sentences, settings_in_words, table_rows
from deepseek_hpf.extras import page_environment


def render_page(comparison: Comparison) -> str:
    """Returns the comparison as one HTML page, for light and dark, wide and narrow screens.

    Args:
        comparison: Two finished runs.

    Returns:
        The HTML. Pictures are inside as data URIs; no script, no reference to anything outside.

    Raises:
        ConfigError: jinja2 or matplotlib, of the extra `report`, is not installed.
    """
    environment = page_environment("deepseek_hpf.demo")
    pictures = {
        f"{look}_{width}": _data_uri(loss_curves(comparison, style=style, size=size))
        for look, style in (("light", LIGHT), ("dark", DARK))
        for width, size in (("wide", WIDE), ("narrow", NARROW))
    }
    return environment.get_template("page.html.j2").render(
        names=run_names(comparison),
        rows=table_rows(comparison),
        sentences=sentences(comparison),
        settings=settings_in_words(comparison),
        dataset=comparison.settings.dataset,
        epochs=list(zip(comparison.baseline.epochs, comparison.policy.epochs, strict=True)),
        pictures=pictures,
    )


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
