"""`hpf check`: is a configuration file valid, and what do its rules hit?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from deepseek_hpf.config import PrecisionConfig, PrecisionRule
    from deepseek_hpf.scheduling.rules import RuleResolution

EXIT_UNMATCHED = 1
SHOWN_PATHS = 6
SELECTORS = ("layers", "layer_type")
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
    # Without markup: the brackets of a pattern are not a style.
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
    """One row a rule; what it hits beside it if a model was given."""
    from rich.table import Table

    table = Table(title="Rules: of several for one key, the last wins", title_justify="left")
    table.add_column("rule", justify="right")
    table.add_column("selects", overflow="fold")
    table.add_column("sets", no_wrap=True)  # short words, which read badly when broken
    if resolution is not None:
        table.add_column("hits", justify="right")
        table.add_column("where", overflow="fold")
    for index, rule in enumerate(rules):
        cells = [str(index), _listed_keys(rule, SELECTORS), _listed_keys(rule, SETTINGS)]
        if resolution is not None:
            cells += _hits(resolution, index, every_path)
        table.add_row(*cells)
    return table


def _listed_keys(rule: "PrecisionRule", keys: tuple[str, ...]) -> str:
    """Those of the keys that the rule gives, one a line."""
    values = {key: getattr(rule, key) for key in keys if key in rule.model_fields_set}
    shown = {True: "true", False: "false", None: "null"}
    return "\n".join(f"{key}: {shown.get(value, value)}" for key, value in values.items())


def _hits(resolution: "RuleResolution", index: int, every_path: bool) -> list[str]:
    """How many layers a rule hits (and for how many it counts after later rules), and which."""
    paths = resolution.hits[index]
    in_force = sum(index in resolution.deciding(path) for path in paths)
    count = f"{len(paths)}" if in_force == len(paths) else f"{len(paths)}\n{in_force} in force"
    return [count, _listed(paths, every_path)]


def _listed(paths: tuple[str, ...], every_path: bool) -> str:
    """The first few paths, or all."""
    if every_path or len(paths) <= SHOWN_PATHS:
        return "\n".join(paths) or "no layer"
    return "\n".join([*paths[:SHOWN_PATHS], f"… and {len(paths) - SHOWN_PATHS} more"])
