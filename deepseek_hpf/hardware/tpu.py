"""Google TPUs: bfloat16 is what they multiply in; the devices, by their PCI ids."""

from deepseek_hpf.hardware import pci
from deepseek_hpf.hardware.device import Device, Support

VENDOR_ID = "0x1ae0"
_VERSIONS = {
    "0x0027": "v3",  # v2 answers with the same id.
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "tpu7x",
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


def device(name: str, version: str = "", memory_total: int | None = None) -> Device:
    """A TPU; memory in bytes."""
    return Device(
        "tpu",
        "google",
        name,
        architecture=version,
        memory_total=memory_total,
        support=support(version),
    )


def device_from_pci(device_id: str) -> Device | None:
    """The TPU with this PCI device id; None if it is none."""
    version = _VERSIONS.get(device_id)
    return device(f"TPU {version}", version) if version else None


def probe() -> list[Device]:
    """The TPU chips of this machine."""
    found = (device_from_pci(device_id) for device_id in pci.device_ids(VENDOR_ID))
    return [chip for chip in found if chip is not None]
