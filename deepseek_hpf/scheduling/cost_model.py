"""`CostModel`: what each layer costs and risks in each precision, and what lies between layers."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deepseek_hpf.errors import ConfigError


@dataclass(frozen=True)
class Cost:
    """What a layer costs under one policy.

    Args:
        seconds: Of its forward and backward pass.
        risk: Its share of the error of a step; risks add up. 0 for exact; inf forbids the policy.
    """

    seconds: float
    risk: float = 0.0


@dataclass(frozen=True)
class Edge:
    """A tensor that goes from one layer to another, and its gradient that comes back.

    Args:
        producer: Path of the layer that makes it.
        consumer: Path of the layer that takes it.
        casts: `(policy of the producer, policy of the consumer)` to the seconds of the casts
            between them; a pair that is absent costs nothing.
    """

    producer: str
    consumer: str
    casts: Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class CostModel:
    """A model's layers as a labelling problem.

        seconds = sum over layers of seconds[policy] + sum over edges of casts[policy, policy]
        risk    = sum over layers of risk[policy]

    Args:
        layers: Layer path to the policies that it may have, and their costs.
        edges: The tensors between them. There may be several between two layers.
        groups: Paths of layers that have to have one policy.

    Raises:
        ConfigError: A cost is negative or not a number, a layer has no policy to choose from, or
            an edge or a group names a layer that is not there.

    Example:
        >>> from deepseek_hpf.scheduling.cost_model import Cost, CostModel, Edge
        >>> model = CostModel(
        ...     {
        ...         "a": {"float32": Cost(3.0), "mixed_bfloat16": Cost(1.0, risk=0.1)},
        ...         "b": {"float32": Cost(2.0)},
        ...     },
        ...     (Edge("a", "b", {("mixed_bfloat16", "float32"): 0.5}),),
        ... )
        >>> low = {"a": "mixed_bfloat16", "b": "float32"}
        >>> model.seconds(low), model.risk(low)
        (3.5, 0.1)
    """

    layers: Mapping[str, Mapping[str, Cost]]
    edges: tuple[Edge, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for path, options in self.layers.items():
            if not options:
                raise ConfigError(f"expected a policy to choose from. Received none for {path!r}.")
            for policy, cost in options.items():
                if not (0 <= cost.seconds < math.inf and cost.risk >= 0):
                    raise ConfigError(
                        f"expected seconds and risk of at least 0. Received: {cost} "
                        f"for {path!r} under {policy}."
                    )
        for edge in self.edges:
            self._has((edge.producer, edge.consumer))
            if not all(0 <= seconds < math.inf for seconds in edge.casts.values()):
                raise ConfigError(f"expected seconds of at least 0. Received: {edge}")
        for group in self.groups:
            self._has(group)

    def seconds(self, policies: Mapping[str, str]) -> float:
        """Seconds of a step.

        Args:
            policies: Path to policy, of all layers.

        Returns:
            Of the layers and the casts between them.
        """
        layers = (options[policies[path]].seconds for path, options in self.layers.items())
        casts = (
            edge.casts.get((policies[edge.producer], policies[edge.consumer]), 0.0)
            for edge in self.edges
        )
        return math.fsum(layers) + math.fsum(casts)

    def risk(self, policies: Mapping[str, str]) -> float:
        """Risk of a step.

        Args:
            policies: Path to policy, of all layers.

        Returns:
            The sum over the layers.
        """
        return math.fsum(options[policies[path]].risk for path, options in self.layers.items())

    def _has(self, paths: Iterable[str]) -> None:
        lost = [path for path in paths if path not in self.layers]
        if lost:
            raise ConfigError(f"expected layers of the model. Received: {lost[0]!r}")
