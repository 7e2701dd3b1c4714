"""`hpf events`: what a run under dynamic precision decided, why, and what it came to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deepseek_hpf.dynamic.recorded_run import RecordedRun

# What the ending of an output asks for needs a package of the extra "report".
_PACKAGES = {".png": "matplotlib", ".html": "jinja2", ".htm": "jinja2"}


def events(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines that the run has written.")
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.png|.html",
            help="Draw the timeline as a picture or a page; may be given for both.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs; times in seconds.")
    ] = False,
    step_range: Annotated[
        str | None,
        typer.Option(metavar="FIRST:END", help="Only these steps, e.g. 1000:2000, 1000: or :500."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most events on the console, the last.")] = 40,
) -> None:
    """Show what a run decided about its precision, and why; draw its timeline.

    The file may be that of a run that still goes on, was killed, or was resumed.

    Exit code: 0; 2 any error.
    """
    outputs = output or []
    _check_outputs(outputs)
    first, end = _range(step_range)
    from deepseek_hpf.dynamic.event_file import read_events

    run = read_events(file).between(first, end)
    if json:
        typer.echo(_encoded(run))
    else:
        from rich.console import Console

        from deepseek_hpf.dynamic.event_tables import event_tables

        Console().print(event_tables(run, rows))
    for path in outputs:
        _draw(run, path)
        typer.echo(f"Written: {path}", err=json)


def _check_outputs(outputs: list[Path]) -> None:
    """Raises before the work is done if its result could not be written."""
    from deepseek_hpf.errors import ConfigError
    from deepseek_hpf.extras import import_extra

    for path in outputs:
        package = _PACKAGES.get(path.suffix.lower())
        if package is None:
            raise ConfigError(f"expected a file that ends in .png or .html. Received: {path}.")
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"expected a file in a folder that is there. Received: {path}.")
        import_extra(package, "report")


def _range(given: str | None) -> tuple[int | None, int | None]:
    from deepseek_hpf.errors import ConfigError

    if given is None:
        return None, None
    parts = given.split(":")
    if len(parts) != 2 or not all(part.isdecimal() or not part for part in parts):
        raise ConfigError(
            "--step-range: expected FIRST:END, two numbers of steps of which one may be left "
            f"out. Received: {given}."
        )
    first, end = (int(part) if part else None for part in parts)
    return first, end


def _encoded(run: "RecordedRun") -> str:
    import json

    from deepseek_hpf.dynamic.event_lines import plain
    from deepseek_hpf.dynamic.run_summary import summary_of

    start = run.starts[-1]
    values = {
        "model": start.model,
        "policy": start.policy,
        "controller": start.controller,
        "first_step": run.first,
        "end_step": run.end,
        "summary": summary_of(run).to_dict(),
        "events": [event.model_dump() for event in run.events],
        "notes": run.notes,
    }
    return json.dumps(plain(values), indent=2, ensure_ascii=False, allow_nan=False)


def _draw(run: "RecordedRun", path: Path) -> None:
    from deepseek_hpf.files import write_bytes_atomically, write_text_atomically

    if path.suffix.lower() == ".png":
        from deepseek_hpf.dynamic.timeline import timeline_of
        from deepseek_hpf.dynamic.timeline_plot import draw_timeline

        write_bytes_atomically(path, draw_timeline(timeline_of(run)))
    else:
        from deepseek_hpf.dynamic.timeline_page import render_timeline

        write_text_atomically(path, render_timeline(run))
