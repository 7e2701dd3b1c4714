"""What the tuner tries, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from deepseek_hpf.config import PrecisionConfig, PrecisionRule
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.patterns import escape
from deepseek_hpf.scheduling.rules import LayerNode

FLOAT32 = "float32"


@dataclass(frozen=True)
class Candidate:
    """One way to train a model.

    Args:
        name: E.g. `"mixed_bfloat16, kernels"`.
        config: The configuration that trains so.
        is_blanket: Whether it is what Keras has: one policy for all layers, no kernels.
        seconds: Median of a step; None where it was not timed.
        ratio: How many times as fast as float32 without kernels, paired; None where not timed.
        spread: Quartiles of the ratio; None where it was timed by its first steps only.
        loss_error: Relative error of the loss against float32; None where it was not taken.
        gradient_error: The same of the gradients, for information.
        predicted: The ratio that the cost model foretold; None where it was not asked.
        note: Why it was left out, or what else is to be said.
    """

    name: str
    config: PrecisionConfig = field(compare=False)
    is_blanket: bool = False
    seconds: float | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    predicted: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        values = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "config"}
        spread = None if self.spread is None else list(self.spread)
        return {**values, "spread": spread, "config": self.config.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a candidate of what `to_dict` returned.

        Args:
            values: Its keys.

        Returns:
            The candidate.
        """
        spread = values["spread"]
        config = PrecisionConfig.from_dict(dict(values["config"]))
        spread = None if spread is None else (float(spread[0]), float(spread[1]))
        return cls(**{**values, "spread": spread, "config": config})


def blanket(policy: str, *, kernels: bool, base: PrecisionConfig | None = None) -> Candidate:
    """One policy for all layers, critical ones as `apply_policy` has them.

    Args:
        policy: Name of the policy.
        kernels: Whether fused kernels are used.
        base: What else the configuration says.

    Returns:
        The candidate.

    Example:
        >>> from deepseek_hpf.tuning.candidates import blanket
        >>> blanket("mixed_bfloat16", kernels=True).name
        'mixed_bfloat16, kernels'
    """
    config = (base or PrecisionConfig()).replace(policy=policy, kernels=kernels)
    name = f"{policy}, kernels" if kernels else policy
    return Candidate(name, config, is_blanket=not kernels)


def with_islands(
    candidate: Candidate,
    name: str,
    policies: Mapping[str, str],
    present: Mapping[str, str],
    nodes: Sequence[LayerNode],
) -> Candidate:
    """A candidate with other policies for some layers.

    Where all layers of a class are to have one policy, one rule says so for the class.

    Args:
        candidate: What it starts from.
        name: Its name.
        policies: Layer path to the policy that it is to have; what a layer holds goes with it.
        present: Layer path to the policy that it has with the candidate as it is.
        nodes: All layers of the model.

    Returns:
        The candidate, with rules for the layers whose policy is to be another one.

    Example:
        >>> from deepseek_hpf.scheduling.rules import LayerNode
        >>> from deepseek_hpf.tuning.candidates import blanket, with_islands
        >>> low = blanket("mixed_bfloat16", kernels=True)
        >>> nodes = [LayerNode("a[0]", "Dense"), LayerNode("b", "Dense"), LayerNode("c", "ReLU")]
        >>> present = dict.fromkeys(["a[0]", "b", "c"], "mixed_bfloat16")
        >>> wanted = {**present, "a[0]": "float32", "c": "float32"}
        >>> mixed = with_islands(low, "mixed", wanted, present, nodes)
        >>> [rule.to_dict() for rule in mixed.config.rules]
        [{'layers': 'a[[]0]', 'policy': 'float32'}, {'layer_type': 'ReLU', 'policy': 'float32'}]
    """
    types = _types_of_one_policy(policies, nodes)
    class_names = {node.path: node.class_name for node in nodes}
    # A dict keeps the first of equal rules only.
    rules: dict[tuple[str, str], str] = {}
    for path, policy in policies.items():
        if policy != present[path]:
            is_typed = types.get(class_names[path]) == policy
            where = ("layer_type", class_names[path]) if is_typed else ("layers", escape(path))
            rules[where] = policy
    made = [
        PrecisionRule.model_validate({key: value, "policy": policy})
        for (key, value), policy in rules.items()
    ]
    base = candidate.config
    return Candidate(name, base.replace(rules=(*made, *base.rules)))


def _types_of_one_policy(
    policies: Mapping[str, str], nodes: Sequence[LayerNode]
) -> dict[str, str | None]:
    """Class names to the policy that all layers of the class are to have; None where they differ.

    A rule for a class covers what layers of the class hold, as does the decision on a layer.
    """
    decided: dict[str, str | None] = {}
    types: dict[str, str | None] = {}
    for node in nodes:  # parents first
        above = decided.get(node.parent) if node.parent is not None else None
        policy = decided[node.path] = policies.get(node.path, above)
        types[node.class_name] = policy if types.get(node.class_name, policy) == policy else None
    return types


def policies_of(plan: PrecisionPlan) -> dict[str, str]:
    """The policy of each layer of a plan that has one.

    Args:
        plan: The plan.

    Returns:
        Layer path to the name of its policy.
    """
    return {path: layer.policy for path, layer in plan.items() if layer.policy is not None}
