"""Google TPUs: bfloat16 is what they multiply in; the devices, by their PCI ids."""

from deepseek_hpf.hardware import pci
from deepseek_hpf.hardware.device import Device, Support

VENDOR_ID = "0x1ae0"
# Version and memory of a chip in GiB.
_VERSIONS = {
    "0x0027": ("v3", 32),  # v2, with half the memory, answers with the same id.
    "0x005e": ("v4", 32),
    "0x0062": ("v5p", 95),
    "0x0063": ("v5e", 16),
    "0x006f": ("v6e", 32),
    "0x0076": ("tpu7x", 192),
}


def support(version: str) -> dict[str, Support]:
    """What each format is on a TPU of this version, e.g. `"v4"`; empty if it is unknown."""
    emulated = "the matrix unit takes bfloat16; this format is converted"
    float8 = Support("emulated", emulated)
    if version == "tpu7x":
        float8 = Support("native", "tpu7x has matrix units for 8-bit floats")
    return {
        "float64": Support("emulated", emulated),
        "float32": Support("native", "every TPU computes in it"),
        "bfloat16": Support("native", "every TPU's matrix unit takes bfloat16"),
        "float16": Support("emulated", emulated),
        "float8_e4m3fn": float8,
        "float8_e5m2": float8,
    }


def device(
    name: str,
    version: str = "",
    memory_total: int | None = None,
    memory_free: int | None = None,
) -> Device:
    """A TPU; memory in bytes."""
    return Device(
        "tpu",
        "google",
        name,
        architecture=version,
        memory_total=memory_total,
        memory_free=memory_free,
        support=support(version),
    )


def device_from_pci(device_id: str) -> Device | None:
    """The TPU with this PCI device id; None if it is none."""
    if device_id not in _VERSIONS:
        return None
    version, gibibytes = _VERSIONS[device_id]
    return device(f"TPU {version}", version, gibibytes * 2**30)


def probe() -> list[Device]:
    """The TPU chips of this machine."""
    found = (device_from_pci(device_id) for device_id in pci.device_ids(VENDOR_ID))
    return [chip for chip in found if chip is not None]
