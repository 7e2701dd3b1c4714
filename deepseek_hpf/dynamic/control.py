"""Carries out what a controller decides: plans are switched, the loss scale is kept."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.compiled_plans import CompiledPlans
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.adapters.skip_causes import protecting_optimizer
from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.config_wording import shown
from deepseek_hpf.dynamic.event_log import EventLog
from deepseek_hpf.dynamic.loss_scale import PredictiveScaling, set_loss_scale
from deepseek_hpf.dynamic.model_blocks import model_blocks
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.plan_space import PlanSpace
from deepseek_hpf.scheduling.telemetry import Overflow, Telemetry

MakeController = Callable[[PlanSpace, DynamicConfig], Controller]


class Control:
    """A controller at work on a model whose layers are known.

    Args:
        model: The model, under the plan of the report.
        report: Of `apply_policy`.
        config: The settings.
        make_controller: Makes the controller.
        log: What is told of every decision.

    Attributes:
        switches: Plans switched to, so far.
    """

    def __init__(
        self,
        model: keras.Model,
        report: OverrideReport,
        config: DynamicConfig,
        make_controller: MakeController,
        log: EventLog,
    ):
        self.log = log
        self.switches = 0
        self._model = model
        self._policy = report.policy
        blocks = model_blocks(model, report.plan, config.max_blocks)
        self.space = PlanSpace(report.plan, blocks)
        self._controller = make_controller(self.space, config)
        rules = protecting_optimizer(model).scale_rules  # type: ignore[union-attr]
        self._predictive = PredictiveScaling(config, rules)
        self._float16: tuple[PrecisionPlan | None, list[str]] = (None, [])
        self._plans = self._compiled_plans()
        self.return_to_plan()

    @property
    def controller(self) -> str:
        """Name of the controller."""
        return self._controller.name

    @property
    def plan(self) -> PrecisionPlan:
        """The plan that the model trains under."""
        return self._controller.plan

    def step_aside(self) -> None:
        """Goes back to the plan of the policy, which is about to be applied again."""
        self._plans.switch(self.space.base)

    def return_to_plan(self, *, compiled_anew: bool = False) -> None:
        """Goes on under the controller's plan.

        Args:
            compiled_anew: Whether what was compiled before is of no use any more.
        """
        if compiled_anew:
            self._plans = self._compiled_plans()
        self._plans.switch(self.plan)

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether the controller wants to be asked before a step, measured or not."""
        return self._controller.is_due(step, epoch)

    def observe(self, telemetry: Telemetry) -> None:
        """Has the controller decide, and carries it out.

        Args:
            telemetry: What the steps since the last call say.
        """
        plan = self._controller.observe(telemetry)
        if plan is not None:
            self._plans.switch(plan)
            self.switches += 1
        for event in self._controller.events:
            self.log.event(event, self.precision())
        self._scale(telemetry)

    def in_float16(self) -> list[str]:
        """Paths of the layers that compute in float16 under the present plan."""
        plan, paths = self._float16
        if plan is not self.plan:  # asked at each step, and a plan takes long to compare
            paths = _in_float16(self.plan)
            self._float16 = (self.plan, paths)
        return paths

    def precision(self) -> dict[str, str]:
        """Name of each block to its level, `"base"`, `"critical"` or `"float32"`.

        Where a schedule has given it another policy, to the name of that.
        """
        return {block.name: self._level(index) for index, block in enumerate(self.space.blocks)}

    def tell_start(self, step: int, *, resumed: bool) -> None:
        """Tells the log that the training begins, or goes on.

        Args:
            step: Number of the next step.
            resumed: Whether steps have been trained before.
        """
        self.log.start(
            step,
            model=self._model.name,
            policy=self._policy,
            controller=self.controller,
            blocks={block.name: block.layers for block in self.space.blocks},
            precision=self.precision(),
            resumed=resumed,
        )

    def get_state(self) -> dict[str, Any]:
        """Returns all that `set_state` needs to go on as if nothing had been, as JSON values."""
        return {
            "name": self.controller,
            "controller": self._controller.get_state(),
            "predictive_scale": self._predictive.get_state(),
            "switches": self.switches,
            "moved": {path: self.space.base[path].policy for path in self._moved()},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, in its plan.

        Args:
            state: What `get_state` returned.

        Raises:
            ConfigError: It is of another controller, or of other blocks.
        """
        if state["name"] != self.controller:
            raise ConfigError(
                f'expected the state of a run under the controller "{self.controller}". '
                f"Received: one under {shown(state['name'])}. Give that controller, or start anew."
            )
        self._controller.set_state(state["controller"])
        self._predictive.set_state(state["predictive_scale"])
        self.switches = state["switches"]
        self._plans.switch(self.plan)

    def _moved(self) -> tuple[str, ...]:
        return self.plan.changes_from(self.space.base)

    def _compiled_plans(self) -> CompiledPlans:
        plans = CompiledPlans(self._model, self.space.base)
        Applied.to(self._model).on_revert(plans.close)
        return plans

    def _scale(self, telemetry: Telemetry) -> None:
        """Puts the loss scale where it belongs: the skip of a step has halved it already."""
        if telemetry.scale is None:
            return
        wanted = self._predictive.observe(telemetry, self.in_float16())
        reason = "foreseen from the largest gradients"
        if wanted is None:
            wanted, reason = self._kept_scale(telemetry.overflows)
        if wanted is not None and wanted != telemetry.scale:
            scale = set_loss_scale(self._model, wanted)
            self.log.scale(telemetry.step, scale, reason)

    def _kept_scale(self, overflows: tuple[Overflow, ...]) -> tuple[float | None, str]:
        for event in self._controller.events:
            if event.scale is not None:
                return event.scale, f"kept, since {event.block} was promoted"
        for overflow in overflows:
            if overflow.cause == "data":
                return overflow.scale, "kept, since the data was bad"
            if overflow.cause == "accumulation":
                return overflow.scale, "kept, since the gradients are summed without it"
        return None, ""

    def _level(self, index: int) -> str:
        block, plan = self.space.blocks[index], self.plan
        levels = [*self.space.bottom]
        for level, name in enumerate(("base", "critical", "float32")):
            levels[index] = level
            alike = self.space.plan(tuple(levels))
            if all(plan[path] == alike[path] for path in block.layers):
                return name
        return str(plan[block.layers[0]].policy)


def _in_float16(plan: PrecisionPlan) -> list[str]:
    policies = {path: layer.policy for path, layer in plan.items() if layer.policy}
    low = {p for p in set(policies.values()) if keras.DTypePolicy(p).compute_dtype == "float16"}
    return [path for path, policy in policies.items() if policy in low]
