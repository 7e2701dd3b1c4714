"""NVIDIA GPUs: the formats, by compute capability; the devices, by NVML or the kernel driver."""

import logging
import re
from pathlib import Path
from typing import Any

from deepseek_hpf.hardware.device import Device, Support

logger = logging.getLogger(__name__)

Capability = tuple[int, int]

# First compute capability whose tensor cores multiply in the format, and the one that computes in
# it at all.
TENSOR_CORES: dict[str, Capability] = {
    "float16": (7, 0),
    "bfloat16": (8, 0),
    "float8_e4m3fn": (8, 9),
    "float8_e5m2": (8, 9),
}
_ARCHITECTURES: tuple[tuple[Capability, str], ...] = (
    ((10, 0), "blackwell"),
    ((9, 0), "hopper"),
    ((8, 9), "ada"),
    ((8, 0), "ampere"),
    ((7, 5), "turing"),
    ((7, 0), "volta"),
    ((6, 0), "pascal"),
    ((5, 0), "maxwell"),
    ((3, 0), "kepler"),
)
_PROC = Path("/proc/driver/nvidia/gpus")


def architecture(capability: Capability | None) -> str:
    """Name of the architecture, e.g. `"hopper"` for `(9, 0)`; empty if unknown."""
    if capability is None:
        return ""
    return next((name for first, name in _ARCHITECTURES if capability >= first), "")


def support(capability: Capability | None) -> dict[str, Support]:
    """What each format is on a GPU of this compute capability; None where it could not be read.

    References:
        CUDA C++ Programming Guide, "Compute Capabilities" and "Arithmetic Instructions".
    """
    plain = Support("native", "every CUDA device computes in it")
    known = {"float64": plain, "float32": plain}
    for dtype, first in TENSOR_CORES.items():
        wanted = f"{dtype} tensor cores came with {_dotted(first)}"
        if capability is None:
            known[dtype] = Support("emulated", f"compute capability unknown; {wanted}")
        elif capability >= first:
            reason = f"compute capability {_dotted(capability)} has {dtype} tensor cores"
            known[dtype] = Support("native", reason)
        else:
            reason = f"compute capability {_dotted(capability)}; {wanted}"
            known[dtype] = Support("emulated", reason)
    return known


def device(
    name: str,
    capability: Capability | None,
    memory_total: int | None = None,
    memory_free: int | None = None,
) -> Device:
    """An NVIDIA GPU; memory in bytes."""
    return Device(
        "gpu",
        "nvidia",
        name,
        architecture=architecture(capability),
        memory_total=memory_total,
        memory_free=memory_free,
        compute_capability=capability,
        support=support(capability),
    )


def parse_capability(text: str) -> Capability | None:
    """Reads `"8.0"`, as the frameworks write it; None for anything else."""
    found = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", text.strip())
    return (int(found[1]), int(found[2])) if found else None


def parse_proc_information(text: str) -> str | None:
    """Reads the model out of `/proc/driver/nvidia/gpus/*/information`; None if it is not there."""
    found = re.search(r"^Model:\s*(\S.*?)\s*$", text, re.MULTILINE)
    return found[1] if found else None


def probe() -> list[Device]:
    """The NVIDIA GPUs of this machine, by NVML (`nvidia-ml-py`), else by the driver's files.

    The files give names only. Environment variables that hide GPUs are not looked at: this is what
    the machine has, not what a process may use.
    """
    return _from_nvml() or _from_proc()


def _from_nvml() -> list[Device]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        logger.debug("NVML is installed but finds no driver: %s", error)
        return []
    try:
        return [_nvml_device(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        logger.debug("NVML stopped answering: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvml_device(nvml: Any, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    name = name.decode() if isinstance(name, bytes) else name
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError:  # A partitioned GPU (MIG) may refuse to say.
        return device(name, (major, minor))
    return device(name, (major, minor), int(memory.total), int(memory.free))


def _from_proc() -> list[Device]:
    try:
        files = sorted(_PROC.glob("*/information"))
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    except OSError:
        return []
    names = (parse_proc_information(text) for text in texts)
    return [device(name or "NVIDIA GPU", None) for name in names]


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
