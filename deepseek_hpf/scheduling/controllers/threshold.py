"""The controller that promotes blocks in trouble, and demotes them when they have been calm."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.blocks import have_names
from deepseek_hpf.scheduling.controllers.block_record import BlockRecord
from deepseek_hpf.scheduling.controllers.controller import Controller, State, restored
from deepseek_hpf.scheduling.events import Event, Kind
from deepseek_hpf.scheduling.plan_space import BASE, FLOAT32, BoundedLevels, Levels, PlanSpace
from deepseek_hpf.scheduling.telemetry import GradientStatistics, Overflow, Telemetry

SHARES = {"underflow": "of its gradient underflows", "lost_updates": "of its updates is lost"}


class Cause(NamedTuple):
    """Why a block moves."""

    reason: str
    overflow: Overflow | None = None

    @property
    def layer(self) -> str | None:
        """The layer at fault, where one is known."""
        return self.overflow.layer if self.overflow else None


class Move(NamedTuple):
    """A block that goes to a level."""

    block: int
    level: int
    kind: Kind
    cause: Cause


class ThresholdController(Controller):
    """Promotes a block to float32 when it shows trouble, and demotes it after a calm period.

    A block is promoted when

    - an overflow in it is found that no loss scale would have spared;
    - two steps in a row overflow in it for their loss scale, which is then kept instead of halved;
    - its gradient norm is an outlier of its own log-normal statistics;
    - more of its gradient underflows, or more of its updates vanish in rounding, than the bound,
      not counting what was lost in float32 as well.

    Its critical layers go first, unless another layer is known to be at fault. Of the promoted
    blocks the one that has been calm for longest beyond its need is demoted, one block at a look
    and at most one in `calm_steps`. The calm that a block needs is `calm_steps`, doubled for each
    time that it had to be promoted again: in T steps a block moves at most
    `2 + 2 * log2(1 + T / calm_steps)` times, whatever it shows.

    Args:
        space: The plans.
        config: Its bounds.

    Example:
        >>> from deepseek_hpf.config_dynamic import DynamicConfig
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> from deepseek_hpf.scheduling.blocks import blocks_of
        >>> from deepseek_hpf.scheduling.controllers.threshold import ThresholdController
        >>> from deepseek_hpf.scheduling.plan_space import PlanSpace
        >>> from deepseek_hpf.scheduling.telemetry import Overflow, Telemetry
        >>> base = PrecisionPlan({"stem": LayerPlan(policy="mixed_float16")})
        >>> space = PlanSpace(base, blocks_of(["stem"], most=1))
        >>> controller = ThresholdController(space, DynamicConfig())
        >>> fault = Overflow(step=9, cause="activation", layer="stem")
        >>> controller.observe(Telemetry(step=10, steps=10, skipped=1, overflows=(fault,)))["stem"]
        LayerPlan(policy='float32', kernel=None, backward=None, activations=None)
        >>> controller.events[0].reason
        'stem overflowed at step 9 (activation)'
    """

    name: ClassVar[str] = "threshold"

    def __init__(self, space: PlanSpace, config: DynamicConfig):
        super().__init__(space.base)
        self._space = space
        self._config = config
        self._levels = BoundedLevels(space, config.max_plans)
        self._records = [BlockRecord() for _ in space.blocks]
        self._since_demotion = config.calm_steps

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Promotes every block in trouble; where there is none, may demote one."""
        causes = self._causes(telemetry)
        self._since_demotion += telemetry.steps
        moves = self._promotions(causes)
        if not causes and not telemetry.skipped:
            moves = self._demotion()
        for move in moves:
            self._records[move.block] = self._records[move.block].moved(move.level)
        plan = self._space.plan(self._current())
        events = (self._event(move, telemetry.step, plan) for move in moves)
        return self._go_to(plan, *events)

    def get_state(self) -> State:
        """Returns the records of the blocks, and the plans seen."""
        return {
            "blocks": {
                block.name: record.to_dict()
                for block, record in zip(self._space.blocks, self._records, strict=True)
            },
            "seen": [list(levels) for levels in self._levels.seen],
            "since_demotion": self._since_demotion,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; the blocks have to be those it was made with."""

        def read() -> tuple[list[BlockRecord], list[Levels], int, PrecisionPlan]:
            if not have_names(self._space.blocks, state["blocks"]):
                raise ValueError("the blocks differ")
            records = [BlockRecord.from_dict(values) for values in state["blocks"].values()]
            seen = [tuple(levels) for levels in state["seen"]]
            plan = self._space.plan(tuple(record.level for record in records))
            return records, seen, state["since_demotion"], plan

        self._records, self._levels.seen, self._since_demotion, self.plan = restored(
            self.name, state, read
        )
        self.events = ()

    def _current(self) -> Levels:
        return tuple(record.level for record in self._records)

    def _causes(self, telemetry: Telemetry) -> dict[int, Cause]:
        """Blocks in trouble, and why; takes in the read-out."""
        causes: dict[int, Cause] = {}
        for overflow in telemetry.overflows:
            index = self._space.block_of(overflow.layer)
            if index is not None and self._is_to_blame(index, overflow):
                reason = f"{overflow.layer} overflowed at step {overflow.step} ({overflow.cause})"
                causes.setdefault(index, Cause(reason, overflow))
        for index, block in enumerate(self._space.blocks):
            found = telemetry.of(block.layers)
            seen = self._reason(self._records[index], found)
            if seen:
                causes.setdefault(index, Cause(seen))
            self._take_in(index, found, telemetry.steps)
        return causes

    def _is_to_blame(self, index: int, overflow: Overflow) -> bool:
        """Whether an overflow is the block's fault and not only the scale's."""
        if overflow.cause != "loss_scale":
            return overflow.cause == "activation"
        record = self._records[index]
        self._records[index] = replace(record, overflow_step=overflow.step)
        return record.overflow_step == overflow.step - 1

    def _reason(self, record: BlockRecord, found: GradientStatistics) -> str | None:
        """Why a block is to be promoted; None where it is well, or cannot go higher."""
        if record.level == FLOAT32 or not found.elements:
            return None
        if record.is_outlier(found.gradient_norm, self._config.outlier_z):
            usual = record.norms.quantile(0.0)
            return f"gradient norm {found.gradient_norm:.3g}, usually {usual:.3g}"
        for name, words in SHARES.items():
            excess = record.excess(name, getattr(found, name))
            if excess > getattr(self._config, name):
                return f"{excess:.0%} {words}"
        return None

    def _take_in(self, index: int, found: GradientStatistics, steps: int) -> None:
        shares = {name: getattr(found, name) for name in SHARES}
        record = self._records[index]
        self._records[index] = record.after(
            found.gradient_norm, shares, self._config.outlier_z, steps
        )

    def _promotions(self, causes: Mapping[int, Cause]) -> list[Move]:
        """The blocks to promote, those included that go along because plans are bounded."""
        if not causes:
            return []
        wanted = list(self._current())
        for index, cause in causes.items():
            wanted[index] = self._space.higher(index, wanted[index], cause.layer)
            self._records[index] = replace(self._records[index], calm=0)
        along = Cause(f"no other way up with at most {self._config.max_plans} plans")
        return [
            Move(index, level, "promote", causes.get(index, along))
            for index, level in enumerate(self._levels.nearest(tuple(wanted)))
            if level > self._records[index].level
        ]

    def _demotion(self) -> list[Move]:
        """The block to demote, if one may be."""
        calm_steps = self._config.calm_steps
        if self._since_demotion < calm_steps:
            return []
        beyond = {
            index: record.calm - record.calm_needed(calm_steps)
            for index, record in enumerate(self._records)
            if record.level > BASE
        }
        for index in sorted(beyond, key=lambda i: (-beyond[i], i)):
            wanted = list(self._current())
            wanted[index] = self._space.lower(index, wanted[index])
            if beyond[index] >= 0 and self._levels.has_room(tuple(wanted)):
                self._levels.nearest(tuple(wanted))
                self._since_demotion = 0
                cause = Cause(f"calm for {self._records[index].calm} steps")
                return [Move(index, wanted[index], "demote", cause)]
        return []

    def _event(self, move: Move, step: int, plan: PrecisionPlan) -> Event:
        overflow = move.cause.overflow
        return Event(
            step=step,
            kind=move.kind,
            reason=move.cause.reason,
            plan=plan.digest(),
            block=self._space.blocks[move.block].name,
            scale=overflow.scale if overflow else None,
        )
