"""Makes the controller that the configuration names."""

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.scheduling.controllers.adaptive import AdaptiveController
from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.controllers.schedule import ScheduleController
from deepseek_hpf.scheduling.controllers.static import StaticController
from deepseek_hpf.scheduling.controllers.threshold import ThresholdController
from deepseek_hpf.scheduling.plan_space import PlanSpace


def create_controller(config: DynamicConfig, space: PlanSpace) -> Controller:
    """Makes the controller of a configuration.

    Args:
        config: The section "dynamic".
        space: The plans it moves among.

    Returns:
        A new controller.

    Example:
        >>> from deepseek_hpf.config import DynamicConfig
        >>> from deepseek_hpf.plan import PrecisionPlan
        >>> from deepseek_hpf.scheduling.controllers.create import create_controller
        >>> from deepseek_hpf.scheduling.plan_space import PlanSpace
        >>> create_controller(DynamicConfig(), PlanSpace(PrecisionPlan(), ())).name
        'threshold'
    """
    if config.controller == "static":
        return StaticController(space.base)
    if config.controller == "schedule":
        return ScheduleController(space.base, config.schedule)
    if config.controller == "adaptive":
        return AdaptiveController(space, config)
    return ThresholdController(space, config)
