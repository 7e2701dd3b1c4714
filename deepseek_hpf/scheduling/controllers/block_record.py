"""What the threshold controller remembers about one block."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from deepseek_hpf.scheduling.log_normal import LogNormal
from deepseek_hpf.scheduling.plan_space import BASE, FLOAT32

# In the first looks norms still move by orders of magnitude.
WARMUP = 20
LEAST_MARGIN, LEAST_MARGIN_AT_FIRST = math.log(2.0), math.log(1000.0)


@dataclass(frozen=True)
class BlockRecord:
    """The memory of one block.

    Args:
        level: Its level.
        promotions: How often it had to be promoted.
        calm: Steps since there was a cause for promotion, or since it last moved.
        norms: Statistics of its gradient norm.
        floors: By the name of a share, what float32 showed of it when the block was last there.
        overflow_step: The last step that overflowed in it for its loss scale.
    """

    level: int = BASE
    promotions: int = 0
    calm: int = 0
    norms: LogNormal = field(default_factory=LogNormal)
    floors: Mapping[str, float] = field(default_factory=dict)
    overflow_step: int | None = None

    def calm_needed(self, calm_steps: int) -> int:
        """Steps of calm before it is demoted: twice as many for each further promotion."""
        return calm_steps * 2 ** max(self.promotions - 1, 0)

    def is_outlier(self, norm: float, z: float) -> bool:
        """Whether a gradient norm lies far above those seen."""
        return self.norms.count > 0 and self.norms.deviation(norm) > self._margin(z)

    def excess(self, name: str, share: float) -> float:
        """Of what float32 would keep, the share that is lost here.

        Dead units and unused rows of an embedding have gradients of zero in float32 too: what
        float32 showed is no fault of the precision.
        """
        floor = self.floors.get(name, 0.0)
        return (share - floor) / (1.0 - floor) if floor < min(share, 1.0) else 0.0

    def after(self, norm: float, shares: Mapping[str, float], z: float, steps: int) -> Self:
        """The record after a look.

        Args:
            norm: Gradient norm of the block.
            shares: Shares of what was lost, by name.
            z: As for `is_outlier`.
            steps: Steps that the look covers.

        Returns:
            The record with it.
        """
        in_float32 = self.level == FLOAT32 and norm > 0.0  # 0 where every step was skipped
        return replace(
            self,
            calm=self.calm + steps,
            norms=self.norms.after(norm, margin=self._margin(z)),
            floors=dict(shares) if in_float32 else self.floors,
        )

    def moved(self, level: int) -> Self:
        """The record after the block has gone to a level."""
        risen = 1 if level > self.level else 0
        return replace(self, level=level, promotions=self.promotions + risen, calm=0)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            **dataclasses.asdict(replace(self, norms=LogNormal(), floors={})),
            "norms": dataclasses.asdict(self.norms),
            "floors": dict(self.floors),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a record of what `to_dict` returned."""
        return cls(**{**values, "norms": LogNormal(**values["norms"])})

    def _margin(self, z: float) -> float:
        least = LEAST_MARGIN_AT_FIRST if self.norms.count < WARMUP else LEAST_MARGIN
        return max(z * math.sqrt(self.norms.variance), least)
