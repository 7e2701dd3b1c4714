"""AMD GPUs: what each format is, by architecture; the devices, by AMD SMI or the kernel's files."""

import logging
import re
from pathlib import Path
from typing import Any

from deepseek_hpf.hardware.device import Device, Support

logger = logging.getLogger(__name__)

_TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
_RENDER_NODES = Path("/sys/class/drm")

# CDNA has matrix units (MFMA) from gfx908 on, RDNA (WMMA) from gfx11 on.
_CDNA_GENERATION = {"gfx908": 1, "gfx90a": 2, "gfx940": 3, "gfx941": 3, "gfx942": 3, "gfx950": 4}
_FLOAT8_OCP = ("gfx950", "gfx12")
_FLOAT8_FNUZ = ("gfx940", "gfx941", "gfx942")


def support(target: str) -> dict[str, Support]:
    """What each format is on an AMD GPU.

    Args:
        target: The compiler's name of the architecture, e.g. `"gfx90a"`; features behind a colon
            (`"gfx90a:sramecc+:xnack-"`) do not matter.

    References:
        ROCm documentation, "Data types and precision support".
    """
    target = base_target(target)
    plain = Support("native", "every ROCm device computes in it")
    family = matrix_units(target)
    if family:
        half = Support("native", f"{target} ({family}) has matrix units for it")
    else:
        half = Support("emulated", f"{target or 'this GPU'} is not known to have matrix units")
    known = {"float64": plain, "float32": plain, "bfloat16": half, "float16": half}
    return known | {dtype: _float8(target) for dtype in ("float8_e4m3fn", "float8_e5m2")}


def _float8(target: str) -> Support:
    if target.startswith(_FLOAT8_OCP):
        return Support("native", f"{target} has matrix units for OCP 8-bit floats")
    if target in _FLOAT8_FNUZ:
        return Support("emulated", f"{target} multiplies in the FNUZ variant of the format only")
    return Support(
        "emulated", f"{target or 'this GPU'} is not known to have units for 8-bit floats"
    )


def base_target(target: str) -> str:
    """`"gfx90a"` of `"gfx90a:sramecc+:xnack-"`."""
    return target.partition(":")[0].strip().lower()


def matrix_units(target: str) -> str:
    """The family whose matrix units this architecture has, e.g. `"CDNA2, MFMA"`; empty if none."""
    if target in _CDNA_GENERATION:
        return f"CDNA{_CDNA_GENERATION[target]}, MFMA"
    if re.fullmatch(r"gfx1[12]\d\d", target):
        return "RDNA, WMMA"
    return ""


def device(
    name: str, target: str, memory_total: int | None = None, memory_free: int | None = None
) -> Device:
    """An AMD GPU; memory in bytes."""
    return Device(
        "gpu",
        "amd",
        name,
        architecture=base_target(target),
        memory_total=memory_total,
        memory_free=memory_free,
        support=support(target),
    )


def parse_properties(text: str) -> dict[str, int]:
    """Reads a `properties` file of the kernel's topology: one `key integer` a line."""
    pairs = (line.split() for line in text.splitlines())
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdecimal()}


def target_of(version: int) -> str:
    """Architecture of a `gfx_target_version`: 90010 (9, 0, 10) is `"gfx90a"`."""
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{stepping:x}"


def device_from_topology(
    properties: str, memory_banks: list[str], memory_used: int | None = None
) -> Device | None:
    """A GPU of the kernel's topology; None for a node that is a CPU.

    Args:
        properties: The node's `properties` file.
        memory_banks: The `properties` files under its `mem_banks`.
        memory_used: Bytes, None if unknown.
    """
    node = parse_properties(properties)
    if not node.get("simd_count") or not node.get("gfx_target_version"):
        return None
    target = target_of(node["gfx_target_version"])
    sizes = [parse_properties(bank).get("size_in_bytes", 0) for bank in memory_banks]
    total = sum(sizes) or None
    free = None if total is None or memory_used is None else max(total - memory_used, 0)
    return device(f"AMD GPU ({target})", target, total, free)


def probe() -> list[Device]:
    """The AMD GPUs of this machine, by AMD SMI (`amdsmi`), else as the compute driver lists them.

    The driver's files do not tell the names.
    """
    return _from_amdsmi() or _from_topology()


def _from_amdsmi() -> list[Device]:
    try:
        import amdsmi
    except Exception as error:  # noqa: BLE001 - it raises what it likes where its library lacks
        logger.debug("amdsmi cannot be imported: %s", error)
        return []
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as error:
        logger.debug("amdsmi is installed but finds no driver: %s", error)
        return []
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
        found = [_amdsmi_device(amdsmi, handle) for handle in handles]
    except amdsmi.AmdSmiException as error:
        logger.debug("amdsmi stopped answering: %s", error)
        return []
    finally:
        amdsmi.amdsmi_shut_down()
    # Old versions do not tell the architecture, on which all depends; the kernel does.
    return found if all(gpu.architecture for gpu in found) else []


def _amdsmi_device(amdsmi: Any, handle: Any) -> Device:
    told = amdsmi.amdsmi_get_gpu_asic_info(handle)
    target = str(told.get("target_graphics_version", ""))
    if not target.startswith("gfx"):  # e.g. "N/A"
        target = ""
    name = str(told.get("market_name", ""))
    if name in ("", "N/A"):
        name = f"AMD GPU ({target})"
    vram = amdsmi.AmdSmiMemoryType.VRAM
    try:
        total = int(amdsmi.amdsmi_get_gpu_memory_total(handle, vram))
        used = int(amdsmi.amdsmi_get_gpu_memory_usage(handle, vram))
    except amdsmi.AmdSmiException:  # A virtual function may refuse to say.
        return device(name, target)
    return device(name, target, total, max(total - used, 0))


def _from_topology() -> list[Device]:
    try:
        nodes = sorted(_TOPOLOGY.iterdir(), key=lambda path: (len(path.name), path.name))
    except OSError:
        return []
    found = [_from_node(node) for node in nodes]
    return [gpu for gpu in found if gpu is not None]


def _from_node(node: Path) -> Device | None:
    try:
        properties = _read(node / "properties")
        banks = [_read(bank) for bank in node.glob("mem_banks/*/properties")]
    except OSError:  # A GPU that a container was not given may not be read.
        return None
    return device_from_topology(properties, banks, _memory_used(properties))


def _memory_used(properties: str) -> int | None:
    minor = parse_properties(properties).get("drm_render_minor", 0)
    file = _RENDER_NODES / f"renderD{minor}" / "device" / "mem_info_vram_used"
    try:
        text = _read(file).strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
