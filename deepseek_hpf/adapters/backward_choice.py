"""Which layers compute their gradients in float32, as rules ask, and what the report says of it."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import keras

from deepseek_hpf.adapters.hooking import CallHook
from deepseek_hpf.adapters.kernels import float32_gradients
from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.adapters.planning import Decision, Draft, is_container, setting
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError

SHOWN = 5  # layers that a line names


@dataclass(frozen=True)
class BackwardChoice:
    """What has been decided on a layer whose gradients a rule wants in float32.

    Args:
        decision: The decision on its precision.
        rule: Index of the rule.
        is_needed: Whether the layer computes in 16 bits, or may come to; otherwise its gradients
            are as wide as itself.
        refusal: Why it cannot be done; None where it can, or need not.
    """

    decision: Decision
    rule: int
    is_needed: bool
    refusal: str | None = None

    @property
    def path(self) -> str:
        """The layer's path."""
        return self.decision.walked.path

    @property
    def is_installed(self) -> bool:
        """Whether the kernel computes the layer."""
        return self.is_needed and self.refusal is None

    @property
    def hook(self) -> CallHook:
        """The wrapper that brings the kernel to the layer."""
        layer = self.decision.layer
        return CallHook(layer, ("backward",), partial(float32_gradients.wrap, layer))


def choose_backward(
    found: Draft, config: PrecisionConfig, has_own_call: Callable[[keras.Layer], bool]
) -> list[BackwardChoice]:
    """Decides on the gradients of a model whose policies have been set.

    Args:
        found: The decisions on precision.
        config: The configuration: where it is dynamic, the kernel is brought to layers in float32
            as well, for it sees at each call what a layer computes in.
        has_own_call: Whether somebody else has put a `call` on a layer.

    Returns:
        One choice for each built layer that a rule gives `backward`; models within the model
        compute nothing themselves, and are left out.

    Raises:
        ConfigError: A rule hits nothing that can do as it says.
    """
    choices = []
    for decision in found.decisions:
        said = setting(found.resolution, decision.walked, "backward")
        if said is not None and decision.layer.built and not is_container(decision.layer):
            refusal = _refusal(decision.layer, has_own_call)
            is_needed = is_low(decision.layer.compute_dtype)
            if not is_needed and refusal is None:
                is_needed = config.dynamic is not None
            choices.append(
                BackwardChoice(decision, said[1], is_needed, refusal if is_needed else None)
            )
    if found.is_built:
        _refuse_rules_in_vain(choices, found)
    return choices


def _refusal(layer: keras.Layer, has_own_call: Callable[[keras.Layer], bool]) -> str | None:
    if (reason := float32_gradients.refuses(layer)) is not None:
        return reason
    return "it has a `call` of its own" if has_own_call(layer) else None


def _refuse_rules_in_vain(choices: list[BackwardChoice], found: Draft) -> None:
    for rule, of_rule in sorted(_by_rule(choices).items()):
        if all(choice.refusal is not None for choice in of_rule):
            refused = _listed([f"{c.path} ({c.refusal})" for c in of_rule])
            raise ConfigError(
                f"rules[{rule}].backward: expected a layer that can compute its gradients in "
                f"float32: a Dense, an EinsumDense or a convolution. Received: {refused}. Give "
                'it the policy "float32", or leave "backward" out'
            )


def settled_backward(found: Draft, choices: list[BackwardChoice]) -> Draft:
    """Derives the decisions with the gradients in rows and plan.

    Args:
        found: The decisions on precision.
        choices: The decisions on gradients.

    Returns:
        The same decisions, with gradients.
    """
    chosen = {id(choice.decision.layer): choice for choice in choices}
    decisions = [_with_backward(d, chosen.get(id(d.layer))) for d in found.decisions]
    plans = {c.path: found.plan[c.path].replace(backward="float32") for c in installed(choices)}
    return replace(found, decisions=decisions, plan=found.plan.replace(plans))


def _with_backward(decision: Decision, choice: BackwardChoice | None) -> Decision:
    if choice is None:
        return decision
    dtype = "float32" if choice.is_installed else None
    row = replace(decision.row, backward=dtype, backward_refusal=choice.refusal)
    return replace(decision, row=row)


def installed(choices: Iterable[BackwardChoice]) -> list[BackwardChoice]:
    """Those whose layers the kernel computes.

    Args:
        choices: The decisions on gradients.

    Returns:
        Some of them.
    """
    return [choice for choice in choices if choice.is_installed]


def backward_lines(choices: list[BackwardChoice]) -> list[str]:
    """What the report says about gradients.

    Args:
        choices: The decisions on gradients.

    Returns:
        One line on the layers with the kernel, one on those that need none, one for each reason to
        do without.
    """
    in_place = [choice.path for choice in installed(choices)]
    idle = [choice.path for choice in choices if not choice.is_needed]
    refused: dict[str, list[str]] = defaultdict(list)
    for choice in choices:
        if choice.refusal is not None:
            refused[choice.refusal].append(choice.path)
    lines = [f"in {_listed(in_place)}"] if in_place else []
    if idle:
        lines.append(f"nothing to do where nothing is computed in 16 bits: {_listed(idle)}")
    lines += [f"{why}; so in {_listed(paths)}" for why, paths in refused.items()]
    return [f"float32 gradients: {line}" for line in lines]


def backward_warnings(choices: list[BackwardChoice]) -> list[str]:
    """What the user should know whose rule does less than it says.

    Args:
        choices: The decisions on gradients.

    Returns:
        One sentence for each rule that hits layers with weights whose gradients stay low.
    """
    with_weights = [
        choice
        for choice in choices
        if choice.refusal is not None and choice.decision.layer.trainable_variables
    ]
    return [
        f"rules[{rule}] asks for gradients in float32, which cannot be had in "
        f"{_listed([f'{c.path} ({c.refusal})' for c in of_rule])}."
        for rule, of_rule in sorted(_by_rule(with_weights).items())
    ]


def _by_rule(choices: Iterable[BackwardChoice]) -> dict[int, list[BackwardChoice]]:
    grouped: dict[int, list[BackwardChoice]] = defaultdict(list)
    for choice in choices:
        grouped[choice.rule].append(choice)
    return grouped


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
