"""`hpf`, the command line. What a command needs is imported when the command runs."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from deepseek_hpf.cli.batch_size import batch_size
from deepseek_hpf.cli.bench import bench
from deepseek_hpf.cli.check import check
from deepseek_hpf.cli.demo import demo
from deepseek_hpf.cli.devices import devices
from deepseek_hpf.cli.env import env
from deepseek_hpf.cli.estimate import estimate
from deepseek_hpf.cli.events import events
from deepseek_hpf.cli.schema import schema
from deepseek_hpf.cli.tune import tune
from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it

# To add a command, write a typer function in a file of its own beside this one, and name it here.
# Its file imports no more than typer at the top: `hpf --help` and the shell's completion import
# all of them. The rest belongs inside the function.
COMMANDS: dict[str, Callable[..., None]] = {
    "batch-size": batch_size,
    "bench": bench,
    "check": check,
    "demo": demo,
    "devices": devices,
    "env": env,
    "estimate": estimate,
    "events": events,
    "schema": schema,
    "tune": tune,
}

app = typer.Typer(
    name="hpf",
    help="Hybrid-precision training for Keras 3 and PyTorch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deepseek_hpf {version('deepseek_hpf')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Takes the options that stand before a command."""


for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def run(arguments: Sequence[str] | None = None) -> None:
    """Runs `hpf`; what the user can put right is an error of one to three lines.

    Args:
        arguments: What follows `hpf`; from the command line if None.

    Raises:
        SystemExit: Always. 0 on success, 2 for an error, 130 after Ctrl-C; a command may have more.
    """
    run_application(app, "hpf", arguments)


def run_application(
    application: typer.Typer, name: str, arguments: Sequence[str] | None = None
) -> None:
    """Runs an application as `run` does.

    Args:
        application: The application.
        name: Its name in the help.
        arguments: What follows the name; from the command line if None.

    Raises:
        SystemExit: Always, as `run`.
    """
    try:
        application(args=arguments, prog_name=name)
    except (ConfigError, PrecisionError, MissingBackendError, OSError) as error:
        _fail(f"error: {error}", EXIT_ERROR)
    except KeyboardInterrupt:
        _fail("Interrupted.", EXIT_INTERRUPTED)
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer ends so after Ctrl-C, without a word
            _fail("Interrupted.", EXIT_INTERRUPTED)
        raise


def _fail(text: str, code: int) -> None:
    typer.secho(text, fg=typer.colors.RED, err=True)
    sys.exit(code)
