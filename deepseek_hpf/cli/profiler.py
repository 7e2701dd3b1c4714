"""`hpf_profiler`: where a model loses precision, and where it wastes time on conversions."""

import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from deepseek_hpf.cli.main import run_application
from deepseek_hpf.cli.options import DataFile

if TYPE_CHECKING:
    from deepseek_hpf.policy import MixedPrecisionPolicy
    from deepseek_hpf.profiler.report import ProfileReport

EXIT_CONFLICTS = 1


class FailOn(enum.StrEnum):
    """What makes the exit code 1."""

    CONFLICTS = "conflicts"


def profile_model(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function that returns a Keras model, e.g. my_models:create_model; with "
            "--criterion a torch.nn.Module.",
        ),
    ],
    data: DataFile = None,
    criterion: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="For plain PyTorch: the loss of output and labels, e.g. "
            "torch.nn.functional:cross_entropy. Needs --data.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Rows of the batch, the first of --data.")
    ] = 16,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Build the model under this policy, as Keras would, e.g. mixed_float16; run a "
            "module under it."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Apply this configuration, a JSON file, to the model."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps to look at.")] = 1,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write the profile as one page.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write the profile as JSON.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the profile for TensorBoard.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows of a table on the console.")] = 20,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Exit with code 1 if there are any.")
    ] = None,
) -> None:
    """Find precision conflicts, ranges, casts and non-finite values in a training step.

    `hpf_profiler diff A.json B.json` compares two profiles.

    Exit code: 0; 1 with --fail-on conflicts, there are some; 2 any error.
    """
    from rich.console import Console

    from deepseek_hpf.profiler.console import report_tables

    _check_outputs(report, tensorboard, (report, json))
    console = Console()
    options = _Options(data, batch_size, policy, config, steps)
    found = _profiled(console, model, criterion, options)
    console.print(report_tables(found, rows))
    for path in _write(found, report, json, tensorboard):
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    if fail_on is FailOn.CONFLICTS and found.conflicts:
        raise typer.Exit(EXIT_CONFLICTS)


def diff(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The profile before.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The profile after.")],
) -> None:
    """Compare two profiles: conflicts gone and new, dtypes, arithmetic and casts.

    Exit code: 0; 2 any error.
    """
    from rich.console import Console

    from deepseek_hpf.profiler.diff import difference, difference_tables
    from deepseek_hpf.profiler.report_json import read_report

    found = difference(read_report(before), read_report(after))
    Console().print(difference_tables(found))


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs `hpf_profiler`; what the user can put right is an error of one to three lines.

    Args:
        arguments: What follows `hpf_profiler`; from the command line if None.

    Raises:
        SystemExit: Always. 0 on success, 1 for conflicts if asked, 2 for an error, 130 after
            Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    compares = given[:1] == ["diff"]  # no factory: those have a colon
    application = typer.Typer(
        add_completion=not compares, pretty_exceptions_enable=False, no_args_is_help=True
    )
    application.command(no_args_is_help=True)(diff if compares else profile_model)
    name = "hpf_profiler diff" if compares else "hpf_profiler"
    run_application(application, name, given[1:] if compares else given)


def _check_outputs(
    report: Path | None, tensorboard: Path | None, files: tuple[Path | None, ...]
) -> None:
    """Raises before the work is done if its result could not be written."""
    from deepseek_hpf.errors import ConfigError
    from deepseek_hpf.extras import import_extra

    if report is not None:
        import_extra("jinja2", "report")
    if tensorboard is not None:
        import_extra("tensorboard", "tensorboard")
    for path in files:
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ConfigError(f"expected a file in a folder that is there. Received: {path}.")


class _Options(NamedTuple):
    """How a model is built and looked at."""

    data: Path | None
    rows: int
    policy: str | None
    config: Path | None
    steps: int


def _profiled(
    console: Any, target: str, criterion: str | None, options: _Options
) -> "ProfileReport":
    """Builds the user's model and profiles it, with a bar that moves meanwhile."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from deepseek_hpf.cli.npz_batch import batch_from
    from deepseek_hpf.lazy import import_with_backend

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Building the model", total=None)
        if criterion is not None:
            side = import_with_backend("deepseek_hpf.cli.profiled_module_torch")
            of_module: ProfileReport = side.profiled_module(target, criterion, **options._asdict())
            return of_module
        model = _built(target, options.policy, options.config)
        batch = batch_from(model, options.data, options.rows)
        progress.update(task, description=f"Looking at {options.steps} step(s)")
        from deepseek_hpf.profiler.profile import profile

        return profile(model, batch, steps=options.steps)


def _built(target: str, policy: str | None, config: Path | None) -> Any:
    """The user's model, built under the policy; with a configuration, that is applied to it."""
    from deepseek_hpf.cli.loading import load_factory, load_model

    if policy is None and config is None:
        return load_model(target)
    load_factory(target)
    chosen = _policy(policy, config)
    with chosen.scope():
        model = load_model(target)
    if config is not None:
        from deepseek_hpf.adapters.apply import apply_policy

        apply_policy(model, chosen)
    return model


def _policy(name: str | None, config: Path | None) -> "MixedPrecisionPolicy":
    from deepseek_hpf.config import PrecisionConfig
    from deepseek_hpf.lazy import import_with_backend

    policies = import_with_backend("deepseek_hpf.policy")
    given = None if config is None else PrecisionConfig.from_json(config)
    named = {} if name is None else {"name": name}
    chosen: MixedPrecisionPolicy = policies.MixedPrecisionPolicy(**named, config=given)
    return chosen


def _write(
    found: "ProfileReport", report: Path | None, json: Path | None, tensorboard: Path | None
) -> list[Path]:
    from deepseek_hpf.files import write_text_atomically

    if report is not None:
        from deepseek_hpf.profiler.page import render_page

        write_text_atomically(report, render_page(found))
    if json is not None:
        from deepseek_hpf.profiler.report_json import to_json

        write_text_atomically(json, to_json(found))
    if tensorboard is not None:
        from deepseek_hpf.profiler.tensorboard_log import write_events

        write_events(found, tensorboard)
    return [path for path in (report, json, tensorboard) if path is not None]
