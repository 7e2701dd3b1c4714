"""What every controller is: telemetry in, now and then a plan out."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.events import Event
from deepseek_hpf.scheduling.telemetry import Telemetry

State = dict[str, Any]
Value = TypeVar("Value")


class Controller:
    """Base of the controllers.

    A controller is a state machine: the same telemetry from the same state leads to the same plans
    and the same state.

    Attributes:
        plan: The plan to train under now.
        events: What the last `observe` decided, and why; empty where it decided nothing.
    """

    name: ClassVar[str]

    def __init__(self, plan: PrecisionPlan):
        self.plan = plan
        self.events: tuple[Event, ...] = ()

    def observe(self, telemetry: Telemetry) -> PrecisionPlan | None:
        """Takes in a read-out.

        Args:
            telemetry: What the steps since the last call say.

        Returns:
            The plan to go on with, or None where it stays.
        """
        raise NotImplementedError

    def is_due(self, step: int, epoch: int) -> bool:
        """Whether it wants to be asked before a step, be there something to read out or not.

        Args:
            step: Number of the next step, from 0.
            epoch: Epoch of the next step, from 0.

        Returns:
            False: it waits for a read-out.
        """
        return False

    def get_state(self) -> State:
        """Returns all that `set_state` needs to go on as if nothing had been, as JSON values."""
        raise NotImplementedError

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Args:
            state: What `get_state` of a controller of the same settings and blocks returned.

        Raises:
            ConfigError: The state is of another controller, or of other blocks.
        """
        raise NotImplementedError

    def _go_to(self, plan: PrecisionPlan, *events: Event) -> PrecisionPlan | None:
        """Makes a plan the one to train under; the same plan is no switch."""
        self.events = events
        if plan == self.plan:
            return None
        self.plan = plan
        return plan


def restored(controller: str, state: Mapping[str, Any], read: Callable[[], Value]) -> Value:
    """Reads a saved state, and says so where it is none of this controller's.

    Args:
        controller: Name of the controller.
        state: The state.
        read: Makes of it what is wanted; what it raises is taken as a sign of a foreign state.

    Returns:
        What `read` returned.

    Raises:
        ConfigError: The state does not fit.
    """
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f'expected a state of the controller "{controller}" with these settings and blocks '
            f"({error}). Received: {shown(state)}. Start anew, or with the settings of that run."
        ) from None
