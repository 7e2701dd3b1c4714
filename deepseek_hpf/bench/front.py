"""The benchmark from jobs to files; `hpf bench` is thin over it."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.markdown import render_markdown
from deepseek_hpf.bench.progress import ProgressDisplay
from deepseek_hpf.bench.records import FLOAT32, ModelResult
from deepseek_hpf.bench.results_file import as_json, read_results
from deepseek_hpf.bench.runs import run_all
from deepseek_hpf.bench.summary import (
    best_peer,
    in_groups,
    names,
    seconds,
    sentences,
    speedup,
    summarize,
)
from deepseek_hpf.bench.tables import suite_table
from deepseek_hpf.config_wording import shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.extras import import_extra
from deepseek_hpf.files import write_bytes_atomically, write_text_atomically


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Files to write; None for none.

    Args:
        json: Everything that was measured, with the ratios.
        markdown: The page.
        plot: The bar chart, a PNG.
        results: Lines of JSON, one a model; what is there is not measured again.
    """

    json: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    results: Path | None = None

    def check(self) -> None:
        """Raises before the work is done if its result could not be written.

        Raises:
            ConfigError: A folder is not there, or matplotlib is not installed.
        """
        for path in (self.json, self.markdown, self.plot, self.results):
            if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
                raise ConfigError(
                    f"Expected a file in a folder that is there. Received: {shown_path(path)}"
                )
        if self.plot is not None:
            import_extra("matplotlib.figure", "report")
        if self.results is not None and self.results.exists():
            read_results(self.results)


def run_bench(jobs: Sequence[Job], outputs: Outputs, console: Console) -> list[ModelResult]:
    """Measures models, prints the tables, and writes the files.

    Args:
        jobs: The models.
        outputs: The files.
        console: Where progress and tables go.

    Returns:
        One result for each job.

    Raises:
        ConfigError: An output cannot be, the back end is not there, or none of the models could be
            measured.
        OSError: A file cannot be written.
    """
    outputs.check()
    with ProgressDisplay(console, len(jobs)) as display:
        results = run_all(jobs, display, outputs.results)
    if all(result.failure for result in results):
        raise ConfigError(results[0].failure)
    page = "" if outputs.markdown is None else f" --markdown {outputs.markdown.name}"
    show(results, outputs, console, jobs[0].command + page)
    return results


def show(
    results: Sequence[ModelResult], outputs: Outputs, console: Console, command: str
) -> list[Path]:
    """Prints what comes out over several models, and writes the files but for the results.

    Args:
        results: Of any machines.
        outputs: The files.
        console: Where it is printed.
        command: What writes the page anew.

    Returns:
        The files that were written.
    """
    for group in in_groups(results):
        if len(group) > 1:
            console.print(suite_table(group))
        for line in sentences(summarize(group)):
            console.print(line, markup=False, highlight=False)
    written = write_files(results, outputs, command)
    for path in written:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    return written


def write_files(results: Sequence[ModelResult], outputs: Outputs, command: str) -> list[Path]:
    """Writes the page, the chart and the figures, each whole or not at all.

    Args:
        results: Of any machines.
        outputs: The files.
        command: What writes the page anew.

    Returns:
        The files that were written.
    """
    if outputs.json is not None:
        write_text_atomically(outputs.json, to_json(results))
    if outputs.markdown is not None:
        write_text_atomically(outputs.markdown, render_markdown(results, command))
    if outputs.plot is not None:
        from deepseek_hpf.bench.plot import bar_chart

        write_bytes_atomically(outputs.plot, bar_chart(results))
    files = (outputs.json, outputs.markdown, outputs.plot)
    return [path for path in files if path is not None]


def to_json(results: Sequence[ModelResult]) -> str:
    """Returns everything that was measured as JSON, with what follows from it.

    Args:
        results: Of any machines.

    Returns:
        `{"models": […], "summaries": […]}`: a model's record has, beside what was measured,
        `"figures"` with median and quartiles of seconds and ratios; a summary is of one machine and
        back end.
    """
    models = [{**as_json(each), "figures": _figures(each)} for each in results]
    summaries = [
        {
            "backend": group[0].machine.backend,
            "devices": group[0].machine.devices,
            **dataclasses.asdict(summarize(group)),
        }
        for group in in_groups(results)
    ]
    return json.dumps({"models": models, "summaries": summaries}, indent=1, allow_nan=False) + "\n"


def _figures(result: ModelResult) -> dict[str, object]:
    peer = best_peer(result)
    figures = {}
    for name in names(result):
        values = {
            "seconds": seconds(result, name),
            "over_float32": speedup(result, name, FLOAT32),
            "over_best_peer": None if peer is None else speedup(result, name, peer),
        }
        figures[name] = {
            key: None if spread is None else dataclasses.asdict(spread)
            for key, spread in values.items()
        }
    return {"best_peer": peer, "contenders": figures}
