"""Which fused kernel computes which layer, and what the report says about it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import keras

from deepseek_hpf.adapters.hooking import CallHook
from deepseek_hpf.adapters.kernels.kernel import Kernel
from deepseek_hpf.adapters.kernels.registry import choose_kernel, kernels_for
from deepseek_hpf.adapters.layer_dtype import reason_to_leave
from deepseek_hpf.adapters.planning import Decision, Draft, setting
from deepseek_hpf.config import PrecisionConfig

SHOWN = 5  # layers that a line names


@dataclass(frozen=True)
class KernelChoice:
    """What has been decided on one layer.

    Args:
        decision: The decision on its precision.
        kernel: The kernel; None where Keras computes the layer.
        refusal: Why a kernel that is wanted and there for such layers is not used.
        rule: Index of the rule that asks for a kernel, or turns it off; None where none does.
        off: Whether there is a kernel and the configuration turns it off.
    """

    decision: Decision
    kernel: Kernel | None = None
    refusal: str | None = None
    rule: int | None = None
    off: bool = False

    @property
    def path(self) -> str:
        """The layer's path."""
        return self.decision.walked.path

    @property
    def hook(self) -> CallHook | None:
        """The wrapper that brings the kernel to the layer."""
        if self.kernel is None:
            return None
        layer = self.decision.layer
        return CallHook(layer, ("kernel", self.kernel.name), partial(self.kernel.wrap, layer))

    @property
    def in_plan(self) -> bool | None:
        """What a `LayerPlan` says: None where there is no kernel for such a layer."""
        if self.kernel is None and self.refusal is None and not self.off:
            return None
        return self.kernel is not None


def choose_kernels(
    found: Draft, config: PrecisionConfig, has_own_call: Callable[[keras.Layer], bool]
) -> list[KernelChoice]:
    """Decides on a kernel for every layer of a model whose policies have been set.

    Args:
        found: The decisions on precision.
        config: The configuration: `kernels`, and the `kernel` of the rules that hit a layer.
        has_own_call: Whether somebody else has put a `call` on a layer.

    Returns:
        One choice for each layer, in the same order.
    """
    return [_choice(decision, found, config, has_own_call) for decision in found.decisions]


def _choice(
    decision: Decision,
    found: Draft,
    config: PrecisionConfig,
    has_own_call: Callable[[keras.Layer], bool],
) -> KernelChoice:
    wanted, rule = config.kernels, None
    ruled = setting(found.resolution, decision.walked, "kernel")
    if ruled is not None:
        wanted, rule = ruled
    layer, critical = decision.layer, decision.critical
    if not layer.built or not kernels_for(layer):
        return KernelChoice(decision, rule=rule if wanted else None)
    if not wanted:
        return KernelChoice(decision, rule=rule, off=True)
    reason = reason_to_leave(layer)
    if reason is None and decision.row.backward is not None:
        reason = f"its gradients are computed in {decision.row.backward}"
    if reason is None and has_own_call(layer):
        reason = "it has a `call` of its own"
    if reason is None and critical is not None and critical.treatment == "activation":
        reason = "its activation is taken out, to run in float32"
    if reason is not None:
        return KernelChoice(decision, refusal=f"{kernels_for(layer)[0].name}: {reason}", rule=rule)
    kernel, refusal = choose_kernel(layer)
    return KernelChoice(decision, kernel, refusal, rule)


def with_kernels(hooks: list[CallHook], kernels: list[CallHook]) -> list[CallHook]:
    """Adds the kernels to other wrappers: the kernel is next to the layer.

    Args:
        hooks: At most one for each target.
        kernels: Those of the kernels, at most one for each target.

    Returns:
        At most one for each target.
    """
    inner = {id(kernel.target): kernel for kernel in kernels}
    joined = [hook.around(inner.pop(id(hook.target), None)) for hook in hooks]
    return [*joined, *inner.values()]


def settled(found: Draft, choices: list[KernelChoice]) -> Draft:
    """Derives the decisions with the kernels in rows and plan.

    Args:
        found: The decisions on precision.
        choices: The kernels.

    Returns:
        The same decisions, with kernels.
    """
    decisions = [_with_kernel(choice) for choice in choices]
    plans = {c.path: found.plan[c.path].replace(kernel=c.in_plan) for c in choices}
    return replace(found, decisions=decisions, plan=found.plan.replace(plans))


def _with_kernel(choice: KernelChoice) -> Decision:
    name = None if choice.kernel is None else choice.kernel.name
    row = replace(choice.decision.row, kernel=name, kernel_refusal=choice.refusal)
    return replace(choice.decision, row=row)


def kernel_lines(choices: list[KernelChoice], config: PrecisionConfig) -> list[str]:
    """What the report says about kernels.

    Args:
        choices: The kernels.
        config: The configuration.

    Returns:
        One line for each kind of kernel in use, one for each reason to do without.
    """
    used: dict[str, int] = defaultdict(int)
    refused: dict[str, list[str]] = defaultdict(list)
    for choice in choices:
        if choice.kernel is not None:
            used[choice.kernel.name] += 1
        elif choice.refusal is not None:
            refused[choice.refusal].append(choice.path)
    lines = [f"{name}: fused in {_layers(count)}" for name, count in used.items()]
    lines += [f"{why}; so in {_listed(paths)}" for why, paths in refused.items()]
    off = sum(choice.off for choice in choices)
    if off:
        by = "rules say" if config.kernels else "the configuration says"
        lines.append(f"off in {_layers(off)}, as {by}")
    return lines


def kernel_warnings(choices: list[KernelChoice]) -> list[str]:
    """What the user should know who has asked for kernels by a rule.

    Args:
        choices: The kernels.

    Returns:
        One sentence for all kernels that are asked for and refused, one for each rule that asks
        for kernels where there are none.
    """
    asked = [choice for choice in choices if choice.rule is not None and not choice.off]
    refused = [f"{c.path} (rules[{c.rule}]; {c.refusal})" for c in asked if c.refusal is not None]
    said = [f"Rules ask for kernels that cannot be had: {_listed(refused)}."] if refused else []
    there = {choice.rule for choice in asked if choice.in_plan is not None}
    unbuilt = {choice.rule for choice in asked if not choice.decision.layer.built}
    for rule in sorted({c.rule for c in asked if c.rule is not None} - there - unbuilt):
        kinds = sorted({c.decision.walked.class_name for c in asked if c.rule == rule})
        back_end = keras.backend.backend()
        said.append(f"rules[{rule}] asks for kernels; {back_end} has none for {_listed(kinds)}.")
    return said


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
