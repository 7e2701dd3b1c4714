"""The demonstration from settings to files; `hpf demo` and the example are thin over it."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.demo.comparison import compare
from deepseek_hpf.demo.progress import ProgressDisplay
from deepseek_hpf.demo.records import Comparison, RunSettings
from deepseek_hpf.demo.summary import (
    run_names,
    sentences,
    settings_in_words,
    table_rows,
    to_json,
)
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.files import write_bytes_atomically, write_text_atomically

PICTURE, PAGE, FIGURES = "loss.png", "report.html", "results.json"
_LARGEST_SEED = 2**32 - 1


def run_demo(settings: RunSettings, output: Path, console: Console) -> Comparison:
    """Trains a ResNet-20 twice, prints the comparison, and writes it as a picture, a page and JSON.

    Args:
        settings: Of the run under the policy.
        output: Folder for the files `loss.png`, `report.html` and `results.json`; it is made.
        console: Where progress and table go.

    Returns:
        The comparison.

    Raises:
        ConfigError: A setting is out of its range, an extra is not installed, or the folder
            cannot be written. What can be known beforehand is raised before the training.
    """
    check_settings(settings)
    _prepare_output(output)
    with ProgressDisplay(console, settings.epochs) as display:
        comparison = compare(settings, display)
    _print(comparison, console)
    for path in write_files(comparison, output):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return comparison


def check_settings(settings: RunSettings) -> None:
    """Raises `ConfigError` for what can be seen to be wrong without a back end."""
    for name, value in (("epochs", settings.epochs), ("batch_size", settings.batch_size)):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1. Received: {name}={value}")
    if not 0 <= settings.seed <= _LARGEST_SEED:
        raise ConfigError(
            f"`seed` must be between 0 and {_LARGEST_SEED}. Received: seed={settings.seed}"
        )
    PrecisionConfig.from_dict({"policy": settings.policy})
    if settings.config_path is not None:
        PrecisionConfig.from_json(settings.config_path)
    import_extra("sklearn", "datasets")
    for module in ("jinja2", "matplotlib"):
        import_extra(module, "report")


def write_files(comparison: Comparison, output: Path) -> list[Path]:
    """Writes the picture, the page and the figures, each whole or not at all.

    Args:
        comparison: Two finished runs.
        output: A folder that is there.

    Returns:
        The files' paths.
    """
    from deepseek_hpf.demo.page import render_page
    from deepseek_hpf.demo.plots import loss_curves

    write_bytes_atomically(output / PICTURE, loss_curves(comparison))
    write_text_atomically(output / PAGE, render_page(comparison))
    write_text_atomically(output / FIGURES, to_json(comparison))
    return [output / name for name in (PICTURE, PAGE, FIGURES)]


def _prepare_output(output: Path) -> None:
    """Makes the folder and tries it, so that no training ends without a place for its result."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".probe-{os.getpid()}"
        write_bytes_atomically(probe, b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"The output folder cannot be written: {error}. Received: output={str(output)!r}"
        ) from error


def _print(comparison: Comparison, console: Console) -> None:
    names = run_names(comparison)
    table = Table(title=Text(f"ResNet-20 on {comparison.settings.dataset}"))
    table.add_column("measured")
    for name in names:
        table.add_column(Text(name), justify="right")
    for row in table_rows(comparison):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    # The first sentence, on the choice of the policy, was printed when the run began.
    for line in (*sentences(comparison)[1:], settings_in_words(comparison)):
        console.print(line, markup=False, highlight=False)
