"""Which dtype autocast uses on which type of device, and what is refused."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepseek_hpf import hardware
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.hardware.device import Device
from deepseek_hpf.scheduling.auto import choose_policy

AUTO = "auto"
MODES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What a configuration, written in Keras's words, means here.
POLICIES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "mixed_bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "mixed_float16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The dtypes of autocast.

    Args:
        dtypes: Type of device, as `torch.device.type` has it, to dtype; float32 is no autocast.
        reason: One sentence saying why.
    """

    dtypes: dict[str, torch.dtype]
    reason: str


def choose_precision(
    mode: str, config: PrecisionConfig, device: "str | torch.device | None" = None
) -> Precision:
    """Decides the dtype for each type of device that a loop may use.

    Args:
        mode: `"auto"`, `"bf16"`, `"fp16"` or `"fp32"`.
        config: Its `policy` counts where `mode` is `"auto"`, and has to agree with it elsewhere.
        device: Type of the one device to look at; None for the CPU and the accelerator.

    Returns:
        The choice.

    Raises:
        ConfigError: The mode is unknown or contradicts the configuration, the device is not there,
            or the device lacks the dtype.
    """
    dtype = _asked_for(mode, config)
    if dtype is None:
        found = {kind: _automatic(devices) for kind, devices in _devices(device).items()}
        main = list(found)[-1]  # The accelerator, where there is one.
        return Precision({kind: dtype for kind, (dtype, _) in found.items()}, found[main][1])
    for kind, devices in _devices(device).items():
        _refuse_lacking(devices, kind, dtype)
    name = str(dtype).removeprefix("torch.")
    return Precision(dict.fromkeys(_devices(device), dtype), f"{name} was asked for by name.")


def _asked_for(mode: str, config: PrecisionConfig) -> "torch.dtype | None":
    """The dtype that the argument or the configuration names; None if the hardware decides."""
    if not isinstance(mode, str):
        raise ConfigTypeError(
            "Argument `precision_mode` must be a string. "
            f"Received: precision_mode={mode!r} (of type {type(mode).__name__})"
        )
    if mode not in (AUTO, *MODES):
        known = ", ".join(repr(name) for name in (AUTO, *MODES))
        raise ConfigError(
            f"Argument `precision_mode` must be one of {known}. Received: precision_mode={mode!r}"
        )
    if config.policy == AUTO:
        return MODES.get(mode)
    if config.policy not in POLICIES:
        raise ConfigError(
            f"Autocast computes in {', '.join(sorted(POLICIES))}. Received: "
            f"policy={config.policy!r}; for such a model leave the context out."
        )
    configured = POLICIES[config.policy]
    if MODES.get(mode, configured) != configured:
        raise ConfigError(
            "Expected `precision_mode` and the configuration's `policy` to agree, or one of them "
            f"to be 'auto'. Received: precision_mode={mode!r}, config.policy={config.policy!r}"
        )
    return configured


def _devices(device: "str | torch.device | None") -> dict[str, list[Device]]:
    """The devices in use by type of device, the accelerator's last."""
    found = hardware.usable_devices("torch")
    accelerator = _accelerator()
    groups = {"cpu": [d for d in found if d.kind == "cpu"]}
    if accelerator is not None:
        groups[accelerator] = [d for d in found if d.kind != "cpu"]
    if device is None:
        return groups
    kind = _device_type(device)
    if kind not in groups:
        raise ConfigError(
            f"This PyTorch ({torch.__version__}) finds no {kind} device; leave `device` out, or "
            f"use one of: {', '.join(groups)}. Received: device={str(device)!r}"
        )
    return {kind: groups[kind]}


def _device_type(device: "str | torch.device") -> str:
    try:
        return str(torch.device(device).type)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            'Argument `device` must be a torch.device or its name, e.g. "cuda". '
            f"Received: device={device!r}"
        ) from error


def _accelerator() -> str | None:
    if not torch.accelerator.is_available():
        return None
    return str(torch.accelerator.current_accelerator().type)


def _automatic(devices: Sequence[Device]) -> "tuple[torch.dtype, str]":
    choice = choose_policy(devices, "torch")
    return POLICIES[choice.name], choice.reason


def _refuse_lacking(devices: Sequence[Device], kind: str, dtype: torch.dtype) -> None:
    """Refuses a dtype that an accelerator does not multiply in; a CPU emulates it, rightly."""
    name = str(dtype).removeprefix("torch.")
    lacking = next((d for d in devices if d.support and not d.native(name)), None)
    if kind != "cpu" and lacking is not None:
        raise ConfigError(
            f'{lacking.name} has no {name}: {lacking.of(name).reason}. Use precision_mode="auto". '
            f"Received: {name}"
        )
