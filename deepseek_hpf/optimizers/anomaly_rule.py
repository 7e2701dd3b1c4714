"""When a gradient norm is an outlier of the run's own; for any array library, as `scale_rule`.

`deepseek_hpf.clipping.Anomaly` explains the rule.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

Tensor = Any

INITIAL_STATE = {"log_norm_mean": 0.0, "log_norm_variance": 0.0, "log_norm_steps": 0.0}


@dataclass(frozen=True, kw_only=True)
class AnomalyRule:
    """The constants of the rule; `Anomaly` explains them."""

    z: float
    decay: float = 0.99
    warmup: int = 100

    def compare(
        self, xp: ModuleType, norm: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compares the log-norm with its running statistics, then updates them.

        Args:
            xp: The array library.
            norm: Global norm of the gradients, a float scalar.
            state: The running statistics before the step, by the names of `INITIAL_STATE`.

        Returns:
            The largest norm that is not an outlier, and the statistics after the step.
        """
        mean, steps = state["log_norm_mean"], state["log_norm_steps"]
        margin = self._margin(xp, state["log_norm_variance"], steps)
        bound = xp.where(xp.equal(steps, 0.0), math.inf, xp.exp(xp.add(mean, margin)))
        positive = xp.greater(norm, 0.0)
        log_norm = xp.log(xp.where(positive, norm, 1.0))
        deviation = xp.subtract(log_norm, mean)
        cut = xp.maximum(xp.minimum(deviation, margin), xp.negative(margin))
        deviation = xp.where(xp.equal(steps, 0.0), deviation, cut)
        updated = self._updated(xp, state, deviation)
        return bound, {name: xp.where(positive, updated[name], state[name]) for name in updated}

    def _margin(self, xp: ModuleType, variance: Tensor, steps: Tensor) -> Tensor:
        least = xp.where(xp.less(steps, float(self.warmup)), math.log(1000.0), math.log(2.0))
        return xp.maximum(xp.multiply(xp.sqrt(variance), self.z), least)

    def _updated(
        self, xp: ModuleType, state: Mapping[str, Tensor], deviation: Tensor
    ) -> dict[str, Tensor]:
        steps = xp.add(state["log_norm_steps"], 1.0)
        weight = xp.maximum(xp.divide(1.0, steps), 1.0 - self.decay)
        shift = xp.multiply(weight, deviation)
        spread = xp.add(state["log_norm_variance"], xp.multiply(shift, deviation))
        return {
            "log_norm_mean": xp.add(state["log_norm_mean"], shift),
            "log_norm_variance": xp.multiply(xp.subtract(1.0, weight), spread),
            # float32 counts to 2**24 and then stays; the weight has long been constant.
            "log_norm_steps": steps,
        }
