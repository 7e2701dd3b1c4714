"""The controller that changes nothing."""

from collections.abc import Mapping
from typing import Any, ClassVar

from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.controllers.controller import Controller, State
from deepseek_hpf.scheduling.telemetry import Telemetry


class StaticController(Controller):
    """Keeps the plan it is given.

    Args:
        plan: The plan.

    Example:
        >>> from deepseek_hpf.plan import PrecisionPlan
        >>> from deepseek_hpf.scheduling.controllers.static import StaticController
        >>> from deepseek_hpf.scheduling.telemetry import Telemetry
        >>> StaticController(PrecisionPlan()).observe(Telemetry(step=50, steps=50)) is None
        True
    """

    name: ClassVar[str] = "static"

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Returns None."""
        return None

    def get_state(self) -> State:
        """Returns an empty dict."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Does nothing: there is no state."""
