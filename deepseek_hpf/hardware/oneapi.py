"""Intel GPUs (oneAPI, "XPU"): the formats, by architecture; the devices, by their PCI ids."""

import re

from deepseek_hpf.hardware import pci
from deepseek_hpf.hardware.device import Device, Support

VENDOR_ID = "0x8086"
# PCI device ids of the families that have matrix units (XMX).
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"0x0bd[0-9a-b]", "xe-hpc", "Intel Data Center GPU Max"),
    (r"0x56c[0-2]", "xe-hpg", "Intel Data Center GPU Flex"),
    (r"0x56[0-9ab][0-9a-f]", "xe-hpg", "Intel Arc A-series"),
    (r"0xe2[01][0-9a-f]", "xe2", "Intel Arc B-series"),
)
_NAMES = (
    (r"data center gpu max", "xe-hpc"),
    (r"data center gpu flex|arc(\(tm\))? (pro )?a\d", "xe-hpg"),
    (r"arc(\(tm\))? (pro )?b\d", "xe2"),
)


def support(architecture: str) -> dict[str, Support]:
    """What each format is on an Intel GPU; the architecture is empty if unknown (integrated)."""
    plain = Support("native", "every oneAPI device computes in it")
    known = {"float32": plain}
    if architecture == "xe-hpc":
        known["float64"] = Support("native", "the Max series has units for it")
    else:
        known["float64"] = Support("emulated", "only the Max series has units for it")
    if architecture:
        half = Support("native", f"{architecture} has matrix units (XMX) for it")
    else:
        half = Support("emulated", "not known to have matrix units (XMX)")
    float8 = Support("emulated", "no matrix units for 8-bit floats are known here")
    known |= {"bfloat16": half, "float16": half}
    return known | {"float8_e4m3fn": float8, "float8_e5m2": float8}


def device(
    name: str, architecture: str, memory_total: int | None = None, memory_free: int | None = None
) -> Device:
    """An Intel GPU; memory in bytes."""
    return Device(
        "gpu",
        "intel",
        name,
        architecture=architecture,
        memory_total=memory_total,
        memory_free=memory_free,
        support=support(architecture),
    )


def architecture_of_name(name: str) -> str:
    """Architecture by the name that the driver gives, e.g. `"xe-hpc"`; empty if unknown."""
    return next((arch for pattern, arch in _NAMES if re.search(pattern, name.lower())), "")


def device_from_pci(device_id: str) -> Device | None:
    """The GPU with this PCI device id; None for anything else, integrated GPUs included."""
    for pattern, architecture, name in _FAMILIES:
        if re.fullmatch(pattern, device_id):
            return device(name, architecture)
    return None


def probe() -> list[Device]:
    """The Intel GPUs with matrix units of this machine."""
    found = (device_from_pci(device_id) for device_id in pci.device_ids(VENDOR_ID))
    return [gpu for gpu in found if gpu is not None]
