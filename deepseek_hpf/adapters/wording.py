"""The sentences of a report that are about the whole configuration: warnings."""

from deepseek_hpf.adapters.planning import Draft
from deepseek_hpf.adapters.walk import WalkedLayer
from deepseek_hpf.config import PrecisionConfig, PrecisionRule

SHOWN = 5  # layers that a sentence names


def warnings_for(found: Draft, config: PrecisionConfig, *, dynamic: bool = False) -> list[str]:
    """What the user should know about a configuration, seen against a model.

    Args:
        found: The decisions.
        config: The configuration.
        dynamic: Whether a controller will switch plans while the model trains.

    Returns:
        One sentence for each matter.
    """
    said = []
    unmatched = found.resolution.warning() if found.is_built else None
    if unmatched is not None:
        said.append(unmatched)
    walked = [d.walked for d in found.decisions]
    said += [s for i, r in enumerate(config.rules) if (s := _ambiguity(i, r, walked)) is not None]
    harmed = [f"{d.row.path} (rules[{d.row.rule}])" for d in found.decisions if d.harmed]
    if harmed:
        said.append(f"Rules keep critical layers in low precision: {_listed(harmed)}.")
    if config.dynamic is not None and not dynamic:
        said.append(
            '"dynamic" is followed by `callbacks.DynamicPrecision(policy)` alone: train with that '
            "callback, or leave the key out."
        )
    return said


def _ambiguity(index: int, rule: PrecisionRule, walked: list[WalkedLayer]) -> str | None:
    """A plain name that several layers have: in different places, or side by side."""
    pattern = rule.layers
    if pattern is None or any(sign in pattern for sign in "*?["):
        return None
    parent, _, name = pattern.rpartition("/")
    paths = [w.path for w in walked]
    if pattern in paths:
        alike = [w.path for w in walked if w.layer.name == name and (w.parent or "") == parent]
        if len(alike) > 1:
            return (
                f'rules[{index}]: "{pattern}" is the first of {len(alike)} layers of that name: '
                f'{_listed(alike)}. "{pattern}*" hits them all.'
            )
        return None
    alike = [w.path for w in walked if w.layer.name == pattern or w.layer.path == pattern]
    if len(alike) < 2:
        return None
    return (
        f'rules[{index}]: "{pattern}" is the name of {len(alike)} layers: {_listed(alike)}. '
        f'Write the whole path, or "*/{pattern}" for all.'
    )


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
