"""The controller that learns, while the model trains, which blocks can be low."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.blocks import have_names
from deepseek_hpf.scheduling.controllers.controller import Controller, State, restored
from deepseek_hpf.scheduling.controllers.linear_bandit import LinearBandit
from deepseek_hpf.scheduling.controllers.reward import Reward
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.plan_space import BASE, FLOAT32, Levels, PlanSpace
from deepseek_hpf.scheduling.telemetry import Telemetry

NOISE = 0.1  # standard deviation of a reward, in shares of a step's time


@dataclass
class Arm:
    """A plan that was tried: its windows, and the sum of their rewards."""

    windows: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Mean reward; inf before the first, so that nothing has lost to be tried."""
        return self.total / self.windows if self.windows else float("inf")


class AdaptiveController(Controller):
    """Tries plans, and stays with those that save time at no cost in quality.

    A contextual bandit. Its actions are the plans with some blocks in float32; what it knows of
    one is, for each block, whether it is low and how much of its gradient and updates was lost
    when it last was. It begins with everything in float32, which the others are compared with, and
    the base plan. From then on it draws rewards from what it believes (Thompson sampling), and goes
    to the plan for which the draw is best: one tried before, or, while fewer than `max_plans` were
    tried, one that differs from the best in one block.

    A plan has *lost* once another one has the better mean reward. At most the share `exploration`
    of all steps is spent on plans that had lost when they were chosen; windows count as long as the
    last one. The window after a switch, which may hold the compilation, is not judged.

    The same telemetry under the same seed leads to the same plans.

    Args:
        space: The plans.
        config: Its settings.

    Example:
        >>> from deepseek_hpf.config_dynamic import DynamicConfig
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> from deepseek_hpf.scheduling.blocks import blocks_of
        >>> from deepseek_hpf.scheduling.controllers.adaptive import AdaptiveController
        >>> from deepseek_hpf.scheduling.plan_space import PlanSpace
        >>> base = PrecisionPlan({"stem": LayerPlan(policy="mixed_float16")})
        >>> space = PlanSpace(base, blocks_of(["stem"], most=1))
        >>> controller = AdaptiveController(space, DynamicConfig(controller="adaptive"))
        >>> controller.plan["stem"].policy
        'float32'
    """

    name: ClassVar[str] = "adaptive"

    def __init__(self, space: PlanSpace, config: DynamicConfig):
        super().__init__(space.plan(space.top))
        self._space = space
        self._config = config
        self._bandit = LinearBandit(1 + 2 * len(space.blocks), noise=NOISE, seed=config.seed)
        self._reward = Reward()
        self._arms: dict[Levels, Arm] = {space.top: Arm()}
        self._levels = space.top
        self._risks = [0.0] * len(space.blocks)
        self._settling = True
        self._has_lost = False
        self._steps = self._lost_steps = 0

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Judges the plan by the window, and decides on the next one."""
        self.events = ()
        if not telemetry.steps:
            return None  # of a skipped step; its window will count it
        self._steps += telemetry.steps
        self._lost_steps += telemetry.steps if self._has_lost else 0
        if self._settling:
            self._settling = False
            return None
        self._judge(telemetry)
        levels = self._choose(telemetry.steps)
        self._has_lost = self._lost(levels)
        if levels == self._levels:
            return None
        event = self._event(levels, telemetry.step)
        self._arms.setdefault(levels, Arm())
        self._levels, self._settling = levels, True
        return self._go_to(self._space.plan(levels), event)

    def get_state(self) -> State:
        """Returns what was learned, and where the exploration stands."""
        return {
            "blocks": [block.name for block in self._space.blocks],
            "bandit": self._bandit.get_state(),
            "reward": self._reward.to_dict(),
            "arms": [[list(a), arm.windows, arm.total] for a, arm in self._arms.items()],
            "levels": list(self._levels),
            "risks": list(self._risks),
            "settling": self._settling,
            "has_lost": self._has_lost,
            "steps": [self._steps, self._lost_steps],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; the blocks have to be those it was made with."""
        restored(self.name, state, lambda: self._read(state))

    def _read(self, state: Mapping[str, Any]) -> None:
        if not have_names(self._space.blocks, state["blocks"]):
            raise ValueError("the blocks differ")
        reward = Reward.from_dict(state["reward"])
        arms = {tuple(levels): Arm(n, total) for levels, n, total in state["arms"]}
        levels = tuple(state["levels"])
        plan = self._space.plan(levels)
        risks, settling, has_lost = list(state["risks"]), state["settling"], state["has_lost"]
        steps, lost_steps = state["steps"]
        self._bandit.set_state(state["bandit"])
        self._reward, self._arms, self._levels, self._risks = reward, arms, levels, risks
        self._settling, self._has_lost = settling, has_lost
        self._steps, self._lost_steps = steps, lost_steps
        self.plan, self.events = plan, ()

    def _judge(self, telemetry: Telemetry) -> None:
        low = [i for i, level in enumerate(self._levels) if level == BASE]
        for index in low:
            found = telemetry.of(self._space.blocks[index].layers)
            self._risks[index] = max(found.underflow, found.lost_updates)
        risk = sum(self._risks[i] for i in low) / len(low) if low else 0.0
        reward = self._reward.of(telemetry, risk)
        self._reward = self._reward.after(telemetry, in_float32=not low)
        arm = self._arms[self._levels]
        arm.windows, arm.total = arm.windows + 1, arm.total + reward
        self._bandit.learn(self._features(self._levels), reward)

    def _choose(self, window: int) -> Levels:
        base = self._space.bottom
        if base not in self._arms:
            return base
        best = self._best()
        candidates = [*self._arms, *self._untried(best)]
        candidates = [levels for levels in candidates if self._may_go_to(levels, window)]
        scores = self._bandit.scores([self._features(levels) for levels in candidates])
        # Of equals the present plan stays, for even a cheap switch is one.
        ranked = zip(scores, candidates, strict=True)
        return max(ranked, key=lambda entry: (entry[0], entry[1] == self._levels))[1]

    def _may_go_to(self, levels: Levels, window: int) -> bool:
        """Whether the bounded exploration allows a plan; a switch costs a window to settle."""
        if not self._lost(levels):
            return True
        coming = window if levels == self._levels else 2 * window
        return self._lost_steps + coming <= self._config.exploration * self._steps

    def _best(self) -> Levels:
        return max(
            (levels for levels, arm in self._arms.items() if arm.windows),
            key=lambda levels: self._arms[levels].mean,
        )

    def _untried(self, best: Levels) -> list[Levels]:
        """Plans that differ from the best one in one block, while there is room for one more."""
        if len(self._arms) >= self._config.max_plans:
            return []
        flipped = (
            (*best[:i], FLOAT32 if level == BASE else BASE, *best[i + 1 :])
            for i, level in enumerate(best)
        )
        return [levels for levels in flipped if levels not in self._arms]

    def _lost(self, levels: Levels) -> bool:
        """Whether another plan is known to be better."""
        arm = self._arms.get(levels)
        return arm is not None and arm.mean < self._arms[self._best()].mean

    def _features(self, levels: Levels) -> list[float]:
        features = [1.0]
        for level, risk in zip(levels, self._risks, strict=True):
            features += [1.0, risk] if level == BASE else [0.0, 0.0]
        return features

    def _event(self, levels: Levels, step: int) -> Event:
        arm = self._arms.get(levels)
        low = [
            block.name
            for block, level in zip(self._space.blocks, levels, strict=True)
            if level == BASE
        ]
        known = "not tried yet" if arm is None else f"mean reward {arm.mean:.3f}"
        return Event(
            step=step,
            kind="settle" if arm is not None and not self._lost(levels) else "explore",
            reason=f"low: {', '.join(low) or 'nothing'}; {known}",
            plan=self._space.plan(levels).digest(),
        )
