"""The devices of this machine, and those of them that a Keras back end can use."""

import importlib
import logging
import sys

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware import cpu, cuda, oneapi, rocm, tpu
from deepseek_hpf.hardware.device import Device

logger = logging.getLogger(__name__)

BACKENDS = ("tensorflow", "jax", "torch")
_VENDORS = (cuda, rocm, oneapi, tpu)


def devices() -> list[Device]:
    """Lists what is in the machine, the CPU first, without importing or starting any framework.

    Drivers and libraries that are absent are normal. Where the vendor's own tool is not installed,
    a framework that is loaded already is asked for what is missing: the compute capability, which
    decides what the formats are, the name, the memory.

    Returns:
        At least the CPU.

    Example:
        >>> from deepseek_hpf import hardware
        >>> hardware.devices()[0].kind
        'cpu'
    """
    found = cpu.probe()
    for vendor in _VENDORS:
        found += vendor.probe()
    return _completed(found)


def usable_devices(backend: str) -> list[Device]:
    """Lists what a Keras back end can use: the CPU, and the accelerators that it sees itself.

    A GPU that is in the machine is not here if the framework was built without support for it, or
    if it is hidden by `CUDA_VISIBLE_DEVICES`.

    Args:
        backend: `"tensorflow"`, `"jax"` or `"torch"`. Others are taken to use the CPU only.

    Returns:
        At least the CPU.

    Raises:
        ConfigError: The framework is not loaded; this function loads none.
    """
    if backend not in BACKENDS:
        return cpu.probe()
    if backend not in sys.modules:
        raise ConfigError(
            "Expected a back end whose framework is loaded, so that it can be asked for its "
            f"devices; `import keras` loads its own. Received: backend={backend!r}"
        )
    return cpu.probe() + _accelerators(backend)


def _completed(found: list[Device]) -> list[Device]:
    """Takes a loaded framework's word for GPUs of which only the name or the family is known."""
    if not any(_is_incomplete(device) for device in found):
        return found
    loaded = [backend for backend in BACKENDS if backend in sys.modules]
    told = [device for backend in loaded for device in _accelerators(backend)]
    return [_told(device, told) if _is_incomplete(device) else device for device in found]


def _is_incomplete(device: Device) -> bool:
    if device.kind != "gpu":
        return False
    lacks_capability = device.vendor == "nvidia" and device.compute_capability is None
    return lacks_capability or device.memory_total is None


def _told(device: Device, told: list[Device]) -> Device:
    """The same device as a framework describes it, or the device itself."""
    of_vendor = [each for each in told if each.vendor == device.vendor]
    for key in ("name", "architecture"):
        for each in of_vendor:
            if getattr(device, key) and getattr(each, key) == getattr(device, key):
                return each
    return device


def _accelerators(backend: str) -> list[Device]:
    module = importlib.import_module(f"deepseek_hpf.hardware.usable_{backend}")
    try:
        accelerators: list[Device] = module.accelerators()
    except RuntimeError as error:
        # A driver that is older than the framework, or a device that another process holds: the
        # framework will say so itself when it is used.
        logger.warning("%s could not list its accelerators: %s", backend, error)
        return []
    return accelerators
