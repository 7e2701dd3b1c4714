"""`hpf`, the command line. What a command needs is imported when the command runs."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import typer

from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Entry(NamedTuple):
    """A command: where it is, and its line in `hpf --help`."""

    target: str
    summary: str


# To add a command, write a typer function in a file of its own beside this one, and name it here.
# Its file should import no more than typer at the top: the rest belongs inside the function.
COMMANDS = {
    "batch-size": Entry(
        "deepseek_hpf.cli.batch_size:batch_size",
        "Find the largest batch that fits, or the fastest.",
    ),
    "bench": Entry("deepseek_hpf.cli.bench:bench", "Time training steps, ours beside the peers'."),
    "check": Entry("deepseek_hpf.cli.check:check", "Validate a configuration file."),
    "devices": Entry(
        "deepseek_hpf.cli.devices:devices", "Show what this machine can do, per dtype."
    ),
    "demo": Entry("deepseek_hpf.cli.demo:demo", "Train a ResNet in float32 and under a policy."),
    "estimate": Entry(
        "deepseek_hpf.cli.estimate:estimate", "Show what a training step needs, by precision."
    ),
    "events": Entry(
        "deepseek_hpf.cli.events:events", "Show a run's switches of precision, and why."
    ),
    "schema": Entry("deepseek_hpf.cli.schema:schema", "Print the JSON Schema of the file."),
    "tune": Entry("deepseek_hpf.cli.tune:tune", "Measure how a model trains fastest."),
}

app = typer.Typer(
    name="hpf",
    help="Hybrid-precision training for Keras 3 and PyTorch.",
    add_completion=False,
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


def load_command(name: str, entry: Entry) -> typer.Typer:
    """Imports a command's file.

    Args:
        name: As the user types it.
        entry: Where it is.

    Returns:
        An application of this one command.
    """
    module_name, _, function_name = entry.target.partition(":")
    function = getattr(importlib.import_module(module_name), function_name)
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(name)(function)
    return command


def _forwarding(name: str, entry: Entry) -> Callable[[typer.Context], None]:
    """Stands for a command in the list, and hands its arguments on to the real one."""

    def forward(context: typer.Context) -> None:
        load_command(name, entry)(args=context.args, prog_name=context.command_path)

    return forward


for _name, _entry in COMMANDS.items():
    app.command(
        _name,
        help=_entry.summary,
        add_help_option=False,  # the real command has its own
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_forwarding(_name, _entry))


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
