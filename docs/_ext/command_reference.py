"""The commands, their arguments and options as Markdown, from the command line itself."""

from typing import Any

import typer

from deepseek_hpf.cli import profiler
from deepseek_hpf.cli.main import app

Command = Any  # typer brings click's classes along under names of its own


def all_commands() -> dict[str, Command]:
    """Returns each command by the words that call it."""
    group = typer.main.get_command(app)
    made = {f"hpf {name}": command for name, command in group.commands.items()}
    for name, function in (
        ("hpf_profiler", profiler.profile_model),
        ("hpf_profiler diff", profiler.diff),
    ):
        application = typer.Typer(add_completion=False)
        application.command()(function)
        made[name] = typer.main.get_command(application)
    return made


def command_reference() -> str:
    """Returns the commands with their arguments and options as Markdown."""
    parts = []
    for name, command in all_commands().items():
        parts += [f"## `{name}`", f"```text\n{_usage(name, command)}\n```", command.help]
        rows = [_row(option) for option in command.params if _is_option(option)]
        if rows:
            head = "| option | default | what it does |\n| --- | --- | --- |"
            parts.append("\n".join([head, *rows]))
    return "\n\n".join(parts)


def _is_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option")


def _usage(name: str, command: Command) -> str:
    arguments = [each for each in command.params if not _is_option(each)]
    words = [each.metavar or each.name.upper() for each in arguments]
    optional = (
        word if each.required or word.startswith("[") else f"[{word}]"
        for each, word in zip(arguments, words, strict=True)
    )
    return " ".join([name, "[OPTIONS]", *optional])


def _row(option: Any) -> str:
    spellings = [f"`{each}`" for each in (*option.opts, *option.secondary_opts)]
    value = "" if option.is_flag else f" `{option.metavar or _kind(option)}`"
    default = "" if option.default in (None, False) else f"`{option.default}`"
    if option.secondary_opts:
        default = f"`{(option.opts if option.default else option.secondary_opts)[0]}`"
    what = (option.help or "").replace("|", "\\|")
    return f"| {', '.join(spellings)}{value} | {default} | {what} |"


def _kind(option: Any) -> str:
    """What stands for the value of an option that names nothing better."""
    is_number = isinstance(option.default, int | float) or getattr(option, "min", None) is not None
    return "NUMBER" if is_number else str(option.name).upper()
