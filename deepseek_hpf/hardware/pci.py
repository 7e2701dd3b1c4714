"""What is on the PCI bus, from Linux's files: ids of vendor and device."""

from pathlib import Path

_DEVICES = Path("/sys/bus/pci/devices")


def device_ids(vendor: str) -> list[str]:
    """Device ids of all PCI devices of one vendor, in bus order.

    Args:
        vendor: As the kernel writes it, e.g. `"0x8086"`.

    Returns:
        E.g. `["0x0bd5"]`; empty where there are none or the system has no such files.
    """
    try:
        slots = sorted(_DEVICES.iterdir())
    except OSError:
        return []
    return [device for slot in slots if (device := _device_of(slot, vendor))]


def _device_of(slot: Path, vendor: str) -> str | None:
    try:
        if (slot / "vendor").read_text(encoding="ascii").strip() != vendor:
            return None
        return (slot / "device").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
