"""The controller that follows a schedule of steps or epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from deepseek_hpf.config_dynamic import SchedulePhase
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.controllers.controller import Controller, State, restored
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.plan_space import in_policy
from deepseek_hpf.scheduling.telemetry import Telemetry


class ScheduleController(Controller):
    """Gives the low layers another policy in some parts of the training.

    Of the phases that have begun, the last in the list holds; before the first one, and in a phase
    without a policy, the base plan does. A layer that the base plan has in float32 stays there.

    Args:
        base: The base plan.
        phases: The phases.

    Example:
        >>> from deepseek_hpf.config_dynamic import SchedulePhase
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> from deepseek_hpf.scheduling.controllers.schedule import ScheduleController
        >>> from deepseek_hpf.scheduling.telemetry import Telemetry
        >>> base = PrecisionPlan({"stem": LayerPlan(policy="mixed_float16")})
        >>> phases = [SchedulePhase(step=0, policy="float32"), SchedulePhase(step=100)]
        >>> controller = ScheduleController(base, phases)
        >>> controller.plan["stem"].policy
        'float32'
        >>> controller.observe(Telemetry(step=100, steps=50)) == base
        True
    """

    name: ClassVar[str] = "schedule"

    def __init__(self, base: PrecisionPlan, phases: Sequence[SchedulePhase]):
        self._base = base
        self._phases = tuple(phases)
        self._phase = self._at(0, 0)
        super().__init__(self._plan())

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Goes to the phase of the next step."""
        phase = self._at(telemetry.step, telemetry.epoch)
        if phase == self._phase:
            self.events = ()
            return None
        self._phase = phase
        plan = self._plan()
        event = Event(step=telemetry.step, kind="phase", reason=self._reason(), plan=plan.digest())
        return self._go_to(plan, event)

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether another phase begins."""
        return self._at(step, epoch) != self._phase

    def get_state(self) -> State:
        """Returns the index of the phase; null before the first one."""
        return {"phase": self._phase}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on in the phase of the state."""

        def read() -> int | None:
            phase = state["phase"]
            return None if phase is None else range(len(self._phases))[phase]

        self._phase = restored(self.name, state, read)
        self.plan, self.events = self._plan(), ()

    def _at(self, step: int, epoch: int) -> int | None:
        """Index of the last phase that has begun."""
        begun = [
            index
            for index, phase in enumerate(self._phases)
            if (step if phase.epoch is None else epoch) >= (phase.step or phase.epoch or 0)
        ]
        return begun[-1] if begun else None

    def _plan(self) -> PrecisionPlan:
        policy = None if self._phase is None else self._phases[self._phase].policy
        return in_policy(self._base, policy, list(self._base)) if policy else self._base

    def _reason(self) -> str:
        if self._phase is None:
            return "before the first phase"
        phase = self._phases[self._phase]
        begin = f"step {phase.step}" if phase.epoch is None else f"epoch {phase.epoch}"
        return f"the schedule from {begin} on: {phase.policy or 'as planned'}"
