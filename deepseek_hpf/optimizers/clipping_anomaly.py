"""Clipping of gradients whose norm is an outlier of the run's own norms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from deepseek_hpf import config as configuration
from deepseek_hpf.errors import ConfigError
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
    decay: float = 0.99
    warmup: int = 100
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
        return {"log_norm_mean": 0.0, "log_norm_variance": 0.0, "log_norm_steps": 0.0}

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Compares the log-norm with its running statistics, then updates them."""
        mean, steps = state["log_norm_mean"], state["log_norm_steps"]
        margin = self._margin(state["log_norm_variance"], steps)
        bound = ops.where(ops.equal(steps, 0.0), math.inf, ops.exp(ops.add(mean, margin)))
        positive = ops.greater(norm, 0.0)
        log_norm = ops.log(ops.where(positive, norm, 1.0))
        deviation = ops.subtract(log_norm, mean)
        cut = ops.maximum(ops.minimum(deviation, margin), ops.negative(margin))
        deviation = ops.where(ops.equal(steps, 0.0), deviation, cut)
        updated = self._updated(state, deviation)
        kept = {name: ops.where(positive, updated[name], state[name]) for name in updated}
        return shrunk_to(norm, bound, kept)

    def _margin(self, variance: Tensor, steps: Tensor) -> Tensor:
        least = ops.where(ops.less(steps, float(self.warmup)), math.log(1000.0), math.log(2.0))
        return ops.maximum(ops.multiply(ops.sqrt(variance), self.z), least)

    def _updated(self, state: Mapping[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
        steps = ops.add(state["log_norm_steps"], 1.0)
        weight = ops.maximum(ops.divide(1.0, steps), 1.0 - self.decay)
        shift = ops.multiply(weight, deviation)
        spread = ops.add(state["log_norm_variance"], ops.multiply(shift, deviation))
        return {
            "log_norm_mean": ops.add(state["log_norm_mean"], shift),
            "log_norm_variance": ops.multiply(ops.subtract(1.0, weight), spread),
            # float32 counts to 2**24 and then stays; the weight has long been constant.
            "log_norm_steps": steps,
        }
