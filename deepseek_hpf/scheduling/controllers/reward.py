"""What a window of steps was worth: time saved, less what it cost in quality."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from deepseek_hpf.scheduling.log_normal import LogNormal
from deepseek_hpf.scheduling.telemetry import Telemetry

SKIP_WEIGHT = 4.0  # a step in four skipped is worth nothing, however fast
LEAST_SPREAD = math.log(1.05)
WIDEST_STEP = math.log(10.0)  # a spike counts as ten times the usual loss


@dataclass(frozen=True)
class Reward:
    """Judges windows by those before.

        reward = time saved - 4 * share skipped - loss regression - risk,  within [-1, 1]

    *Time saved* is the share by which a step is faster than one in float32. The *loss regression*
    is 0 up to two standard deviations of the log-loss above its running mean, and 1 from seven
    on, or where the loss is not finite. *Risk* is what underflows or is lost in rounding.

    Args:
        seconds: Times of a step in float32.
        losses: The losses seen.

    Example:
        >>> from deepseek_hpf.scheduling.controllers.reward import Reward
        >>> from deepseek_hpf.scheduling.telemetry import Telemetry
        >>> wide = Telemetry(step=50, steps=50, step_seconds=0.2)
        >>> low = Telemetry(step=100, steps=50, step_seconds=0.1)
        >>> round(Reward().after(wide, in_float32=True).of(low, risk=0.0), 3)
        0.5
    """

    seconds: LogNormal = field(default_factory=LogNormal)
    losses: LogNormal = field(default_factory=LogNormal)

    def of(self, telemetry: Telemetry, risk: float) -> float:
        """The reward of a window.

        Args:
            telemetry: The window.
            risk: Share of gradients or updates lost, 0 to 1.

        Returns:
            The reward, from -1 to 1.
        """
        skipped = SKIP_WEIGHT * telemetry.skipped / max(telemetry.steps, 1)
        reward = self._saved(telemetry.step_seconds) - skipped - self._regression(telemetry.loss)
        return max(-1.0, min(1.0, reward - risk))

    def after(self, telemetry: Telemetry, *, in_float32: bool) -> Self:
        """Takes in a window.

        Args:
            telemetry: The window.
            in_float32: Whether all of the model was in float32.

        Returns:
            The judge with it.
        """
        seconds = telemetry.step_seconds if in_float32 else None
        return replace(
            self,
            seconds=self.seconds.after(seconds or 0.0),
            losses=self.losses.after(telemetry.loss or 0.0, margin=WIDEST_STEP),
        )

    def _saved(self, seconds: float | None) -> float:
        if seconds is None or not seconds > 0.0 or not self.seconds.count:
            return 0.0
        return 1.0 - min(seconds / self.seconds.quantile(0.0), 2.0)

    def _regression(self, loss: float | None) -> float:
        if loss is None or (loss <= 0.0 and math.isfinite(loss)) or not self.losses.count:
            return 0.0
        if not math.isfinite(loss):
            return 1.0
        spread = max(math.sqrt(self.losses.variance), LEAST_SPREAD)
        return max(0.0, min(1.0, (self.losses.deviation(loss) / spread - 2.0) / 5.0))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a judge of what `to_dict` returned."""
        return cls(*(LogNormal(**values[name]) for name in ("seconds", "losses")))
