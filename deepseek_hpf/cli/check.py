"""`hpf check`: is a configuration file valid, and what do its rules hit?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from deepseek_hpf.config import PrecisionConfig, PrecisionRule
    from deepseek_hpf.scheduling.rules import RuleResolution

EXIT_UNMATCHED = 1
SHOWN_PATHS = 6
SETTINGS = ("policy", "backward", "activations", "kernel")


def check(
    file: Annotated[Path, typer.Argument(help="The configuration, a JSON file.", metavar="FILE")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODULE:FUNCTION",
            help="A function that returns a Keras model, e.g. my_models:create_model. "
            "Shows what each rule hits.",
        ),
    ] = None,
    every_path: Annotated[
        bool, typer.Option("--all", help="List every layer that is hit.")
    ] = False,
) -> None:
    """Validate a configuration file and list its rules.

    Exit code: 0 valid; 1 with --model, a rule hits no layer; 2 any error.
    """
    from rich.console import Console

    from deepseek_hpf.config import PrecisionConfig
    from deepseek_hpf.config_wording import shown_path

    config = PrecisionConfig.from_json(file)
    resolution = None if model is None else _resolve(config, model)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(f"{shown_path(file)} is valid.", style="green", soft_wrap=True)
    for line in _settings_of(config):
        console.print(f"  {line}", soft_wrap=True)
    if config.rules:
        console.print(_table(config.rules, resolution, every_path))
    warning = resolution.warning() if resolution else None
    if warning is not None:
        typer.secho(f"warning: {warning}", fg=typer.colors.YELLOW, err=True)
        raise typer.Exit(EXIT_UNMATCHED)


def _resolve(config: "PrecisionConfig", target: str) -> "RuleResolution":
    """Builds the user's model and finds what each rule hits."""
    from deepseek_hpf.cli.loading import load_model

    model = load_model(target)
    from deepseek_hpf.adapters.walk import rule_nodes, walk
    from deepseek_hpf.scheduling.rules import resolve_rules

    if not model.built:
        typer.secho(
            f"note: the model that {target} returns is not built; layers that are made when it is "
            "built are not seen.",
            fg=typer.colors.YELLOW,
            err=True,
        )
    return resolve_rules(config.rules, rule_nodes(walk(model)))


def _settings_of(config: "PrecisionConfig") -> list[str]:
    """What the file sets besides the rules, one line a key."""
    from deepseek_hpf.config_wording import shown

    lines = []
    for key, value in config.to_dict().items():
        if key == "rules":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{k}={shown(v)}" for k, v in value.items()) or "defaults"
            lines.append(f"{key}: {value}")
        else:
            lines.append(f"{key}: {shown(value)}")
    return lines or ["Everything but the rules is left at its default."]


def _table(
    rules: "tuple[PrecisionRule, ...]", resolution: "RuleResolution | None", every_path: bool
) -> "Table":
    """One row a rule; what it hits beside it, if a model was given."""
    from rich.table import Table

    table = Table(title="Rules: where several give the same key, the last one wins")
    headings = ["rule", "layers", "layer_type", "sets"]
    if resolution is not None:
        headings += ["hits", "in force", "where"]
    for heading in headings:
        numeric = heading in ("rule", "hits", "in force")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for index, rule in enumerate(rules):
        cells = [str(index), rule.layers or "", rule.layer_type or "", _what_it_sets(rule)]
        if resolution is not None:
            paths = resolution.hits[index]
            in_force = sum(index in resolution.deciding(path) for path in paths)
            cells += [str(len(paths)), str(in_force), _listed(paths, every_path)]
        table.add_row(*(_plain(cell) for cell in cells))
    return table


def _what_it_sets(rule: "PrecisionRule") -> str:
    from deepseek_hpf.config_wording import shown

    given = [key for key in SETTINGS if key in rule.model_fields_set]
    return "\n".join(f"{key}: {shown(getattr(rule, key)).strip(chr(34))}" for key in given)


def _listed(paths: tuple[str, ...], every_path: bool) -> str:
    """The first few paths, or all."""
    if every_path or len(paths) <= SHOWN_PATHS:
        return "\n".join(paths) or "no layer"
    return "\n".join([*paths[:SHOWN_PATHS], f"… and {len(paths) - SHOWN_PATHS} more"])


def _plain(text: str) -> Any:
    """Text as it is: in a cell, rich would take the brackets of a pattern for markup."""
    from rich.text import Text

    return Text(text)
