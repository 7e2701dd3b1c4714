"""A controller that decides on all processes alike, although each has a clock of its own."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from deepseek_hpf.distributed.coordination import Coordination
from deepseek_hpf.distributed.fingerprint import fingerprint
from deepseek_hpf.distributed.group import LEADER
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.controllers.controller import Controller, State
from deepseek_hpf.scheduling.telemetry import GradientStatistics, Overflow, Telemetry


class AgreedController(Controller):
    """Asks the other processes before a controller decides.

    A controller is a state machine: on every process it gets the same telemetry, with the mean of
    the processes' times, and so switches to the same plan before the same step. A process whose
    controller, plan or telemetry is another one goes on with the leader's; the log says so.

    Args:
        controller: What decides.
        coordination: Of the processes.
    """

    def __init__(self, controller: Controller, coordination: Coordination):
        super().__init__(controller.plan)
        self.name = controller.name  # type: ignore[misc]
        self._controller = controller
        self._coordination = coordination
        self._checked = False  # whether the processes have compared their plans
        self._repaired = False  # whether they differed then

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether the controller wants to be asked; compares the plans before the first step.

        Raises:
            PrecisionError: The processes are at different steps.
        """
        if not self._checked:
            self._checked = True
            self._repaired = not self._agree(Telemetry(step=step, steps=0, epoch=epoch))[1]
            return self._repaired or self._controller.is_due(step, epoch)
        return self._controller.is_due(step, epoch)

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Takes in a read-out, the same on all processes.

        Raises:
            PrecisionError: The processes are at different steps.
        """
        before = self.plan
        telemetry, _ = self._agree(telemetry)
        asked = telemetry.steps > 0 or self._controller.is_due(telemetry.step, telemetry.epoch)
        if asked or not self._repaired:
            self._controller.observe(telemetry)
            self.events = self._controller.events
        else:
            self.events = ()
        self._repaired = False
        self.plan = self._controller.plan
        return None if self.plan == before else self.plan

    def get_state(self) -> State:
        """Returns the controller's own state: a run of one process can go on from it."""
        return self._controller.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; the processes compare theirs before the next step."""
        self._controller.set_state(state)
        self.plan = self._controller.plan
        self._checked = False

    def _agree(self, telemetry: Telemetry) -> tuple[Telemetry, bool]:
        """The telemetry to decide by, and whether all processes had the same but for the time."""
        controller, seconds = self._controller, telemetry.step_seconds
        telemetry = replace(telemetry, step_seconds=None)
        state = {
            "step": telemetry.step,
            "plan": controller.plan.digest(),
            "controller": fingerprint(controller.get_state()).hex(),
            "telemetry": fingerprint(to_values(telemetry)).hex(),
        }
        known = () if seconds is None else (1.0, seconds)
        decision, _ = self._coordination.decide(state, sums=known or (0.0, 0.0))
        group = self._coordination.group
        if not decision.agreed:
            own = {"state": controller.get_state(), "telemetry": to_values(telemetry)}
            leaders = group.broadcast(own)
            if group.rank != LEADER:
                controller.set_state(leaders["state"])
                telemetry = from_values(leaders["telemetry"])
        count, total = decision.sums
        mean = total / count if count == group.size else None
        return replace(telemetry, step_seconds=mean), decision.agreed


def to_values(telemetry: Telemetry) -> dict[str, Any]:
    """Returns telemetry as a JSON value.

    Args:
        telemetry: The telemetry.

    Returns:
        What `from_values` makes an equal one of.
    """
    layers = {
        path: {name: asdict(part) for name, part in layer.items()}
        for path, layer in telemetry.layers.items()
    }
    plain = replace(telemetry, layers={})
    own = {name: getattr(plain, name) for name in plain.__dataclass_fields__}
    overflows = [{**asdict(o), "samples": list(o.samples)} for o in telemetry.overflows]
    return {**own, "layers": layers, "overflows": overflows}


def from_values(values: Mapping[str, Any]) -> Telemetry:
    """Makes telemetry of what `to_values` returned.

    Args:
        values: The JSON value.

    Returns:
        The telemetry.
    """
    layers = {
        path: {name: GradientStatistics(**part) for name, part in layer.items()}
        for path, layer in values["layers"].items()
    }
    overflows = tuple(
        Overflow(**{**o, "samples": tuple(o["samples"])}) for o in values["overflows"]
    )
    return Telemetry(**{**values, "layers": layers, "overflows": overflows})
