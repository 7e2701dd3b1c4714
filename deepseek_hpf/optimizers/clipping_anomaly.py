"""Clipping of gradients whose norm is an outlier of the run's own norms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from deepseek_hpf import config as configuration
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers.anomaly_rule import INITIAL_STATE, AnomalyRule
from deepseek_hpf.optimizers.clipping_rule import Clipping, Decision, Tensor, shrunk_to


@dataclass(frozen=True)
class Anomaly(Clipping):
    """Cuts a global norm that is an outlier of its own running statistics.

    With `x = log(norm)` and the running mean `m` and standard deviation `s` of the steps before, a
    step is cut to the norm `exp(m + margin)` if `x > m + margin`, where

    - `margin = max(z * s, log 2)`: a norm within twice the usual one is never an anomaly;
    - in the first `warmup` steps `margin = max(z * s, log 1000)`; the very first step is taken as
      it is.

    Then `m` and `s` take in `x`, cut to `m ± margin`, so that an anomaly moves them no further than
    the bound it was cut to, while a lasting change of level is adopted within some steps. All
    steps weigh the same up to the `1 / (1 - decay)`-th; from then on older ones fade by `decay` a
    step. Norms of 0 are left out.

    Args:
        z: Standard deviations above the mean of the log-norm from which a norm is an outlier.
        decay: Factor a step on the weight of older steps, below 1.
        warmup: Steps with the wider margin.

    Example:
        >>> from deepseek_hpf.optimizers import clipping
        >>> clipping.Anomaly(z=4.0)
        Anomaly(z=4.0, decay=0.99, warmup=100)
    """

    z: float = configuration.AnomalyConfig.model_fields["z"].default
    decay: float = AnomalyRule.decay
    warmup: int = AnomalyRule.warmup
    kind: ClassVar[str] = "anomaly"
    by_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay >= 1:
            raise ConfigError(
                f"Argument `decay` of Anomaly must be below 1. Received: decay={self.decay!r}"
            )

    def initial_state(self) -> dict[str, float]:
        """Returns the running mean and variance of the log-norm, and the steps they hold."""
        return dict(INITIAL_STATE)

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Compares the log-norm with its running statistics, then updates them."""
        rule = AnomalyRule(z=self.z, decay=self.decay, warmup=self.warmup)
        bound, updated = rule.compare(ops, norm, state)
        return shrunk_to(norm, bound, updated)
