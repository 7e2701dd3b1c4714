"""What the callbacks ask of the processes that train a Keras model together."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import keras

from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.distributed.agreed_controller import AgreedController
from deepseek_hpf.distributed.coordination import Coordination
from deepseek_hpf.distributed.fingerprint import config_values
from deepseek_hpf.distributed.start import check_alike
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.scheduling.controllers.controller import Controller
from deepseek_hpf.scheduling.plan_space import PlanSpace

MakeController = Callable[[PlanSpace, DynamicConfig], Controller]


def check_processes(model: keras.Model, policy: MixedPrecisionPolicy) -> None:
    """Sees to it that all processes train one model, under one policy.

    Args:
        model: The model that `fit` is about to train.
        policy: Its policy.

    Raises:
        ConfigError: A process has another policy, configuration or version than the leader; raised
            on all of them, naming process and difference.
        PrecisionError: The processes would train a model each, or in a way that cannot work.
    """
    group = _engine().group_of(model)
    if group.size > 1:
        check_alike(group, _description(policy))


def agreed(make_controller: MakeController, model: keras.Model) -> MakeController:
    """Has the controller of a model decide on all processes alike.

    Args:
        make_controller: Makes the controller.
        model: The model that `fit` is about to train.

    Returns:
        The same where one process trains; else what makes an `AgreedController` of it.
    """
    group = _engine().group_of(model)
    if group.size == 1:
        return make_controller

    def make(space: PlanSpace, config: DynamicConfig) -> Controller:
        coordination = Coordination(group, {"dynamic": config.model_dump(mode="json")})
        return AgreedController(make_controller(space, config), coordination)

    return make


def _description(policy: MixedPrecisionPolicy) -> dict[str, Any]:
    return {
        "policy": policy.name,
        "config": config_values(policy.config),
        "keras": keras.__version__,
        **_engine().versions(),
    }


def _engine() -> ModuleType:
    return importlib.import_module(f"deepseek_hpf.distributed.engine_{keras.backend.backend()}")
