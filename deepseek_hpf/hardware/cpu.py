"""The CPU, from what the operating system says about it."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from deepseek_hpf.hardware import cgroup
from deepseek_hpf.hardware.device import Device, Support

# Instruction set extensions that multiply in a format, by format; the names are the kernel's.
NATIVE_FLAGS = {
    "bfloat16": ("amx_bf16", "avx512_bf16", "avx10_2", "bf16", "svebf16", "FEAT_BF16"),
    "float16": ("amx_fp16", "avx512_fp16", "avx10_2", "asimdhp", "FEAT_FP16"),
}
_VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel", "0x41": "arm", "0xc0": "ampere"}
_LINUX_CPUINFO = Path("/proc/cpuinfo")
_LINUX_MEMINFO = Path("/proc/meminfo")
_SYSCTL = "/usr/sbin/sysctl"
_VM_STAT = "/usr/bin/vm_stat"


def support(flags: frozenset[str], *, flags_known: bool = True) -> dict[str, Support]:
    """What each format is on a CPU with these instruction set extensions.

    Args:
        flags: Names of extensions, e.g. `{"avx512_bf16"}`.
        flags_known: False where the operating system does not tell.

    Returns:
        Format name to level and reason.
    """
    plain = Support("native", "every CPU computes in it")
    known = {"float64": plain, "float32": plain}
    for dtype, names in NATIVE_FLAGS.items():
        found = [name for name in names if name in flags]
        if found:
            known[dtype] = Support("native", f"it has {', '.join(found)}")
        elif flags_known:
            known[dtype] = Support("emulated", f"it has no instructions that multiply in {dtype}")
        else:
            reason = f"this system does not tell whether it has {dtype} instructions"
            known[dtype] = Support("emulated", reason)
    for dtype in ("float8_e4m3fn", "float8_e5m2"):
        known[dtype] = Support("emulated", "no CPU path for 8-bit floats is known here")
    return known


def parse_cpuinfo(text: str) -> tuple[str, str, frozenset[str]]:
    """Reads Linux's `/proc/cpuinfo`.

    Args:
        text: The content of the file. Where processors differ (Arm's big and little cores), an
            extension counts only if all have it, since threads move between them.

    Returns:
        Vendor, model name, extensions; `"unknown"` and an empty set where the text holds none.
    """
    fields: dict[str, str] = {}
    flag_sets: list[frozenset[str]] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            continue
        key = key.strip()
        fields.setdefault(key, value.strip())
        if key in ("flags", "Features"):
            flag_sets.append(frozenset(value.split()))
    common = frozenset.intersection(*flag_sets) if flag_sets else frozenset()
    identity = fields.get("vendor_id") or fields.get("CPU implementer", "")
    vendor = _VENDORS.get(identity, "unknown")
    return vendor, fields.get("model name") or fields.get("Hardware") or "CPU", common


def parse_meminfo(text: str) -> tuple[int | None, int | None]:
    """Reads Linux's `/proc/meminfo`; returns total and available memory in bytes."""

    def in_bytes(key: str) -> int | None:
        found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
        return int(found[1]) * 1024 if found else None

    return in_bytes("MemTotal"), in_bytes("MemAvailable")


def parse_sysctl(text: str) -> tuple[str, int | None, frozenset[str]]:
    """Reads macOS's `sysctl machdep.cpu.brand_string hw.memsize hw.optional.arm`.

    Args:
        text: Lines of `key: value`; an Apple processor has `hw.optional.arm.FEAT_BF16: 1`.

    Returns:
        Model name, total memory in bytes, extensions that are 1.
    """
    lines = (line.partition(":") for line in text.splitlines())
    fields = {key.strip(): value.strip() for key, colon, value in lines if colon}
    flags = {key.rpartition(".")[2] for key, value in fields.items() if value == "1"}
    memory = fields.get("hw.memsize", "")
    return (
        fields.get("machdep.cpu.brand_string", "CPU"),
        int(memory) if memory.isdecimal() else None,
        frozenset(flags),
    )


def parse_vm_stat(text: str) -> int | None:
    """Reads macOS's `vm_stat`; returns the memory that is free or given back at once, in bytes."""
    page = re.search(r"page size of (\d+) bytes", text)
    free = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)\.$", text, re.MULTILINE)
    return int(page[1]) * sum(map(int, free)) if page and free else None


def within_limits(device: Device, limit: int | None, left: int | None) -> Device:
    """A CPU whose memory is no more than this process may use.

    Args:
        device: The CPU.
        limit: Bytes that the process may use, None for no limit.
        left: Bytes of them that are not used, None if unknown.

    Returns:
        The CPU, with the smaller of each.
    """
    return replace(
        device,
        memory_total=_smaller(device.memory_total, limit),
        memory_free=_smaller(_smaller(device.memory_free, left), limit),
    )


def _smaller(first: int | None, second: int | None) -> int | None:
    return min((value for value in (first, second) if value is not None), default=None)


def relevant(flags: frozenset[str]) -> frozenset[str]:
    """The extensions that bear on number formats or on the width of vectors."""
    wide = {"avx2", "avx512f", "amx_tile", "amx_int8", "avx512_vnni", "avx_vnni", "sve", "asimd"}
    return flags & (wide | {name for names in NATIVE_FLAGS.values() for name in names})


def from_linux(cpuinfo: str, meminfo: str, machine: str) -> Device:
    """A CPU as Linux's files in `/proc` describe it; `machine` is e.g. `"x86_64"`."""
    vendor, name, flags = parse_cpuinfo(cpuinfo)
    total, free = parse_meminfo(meminfo)
    return Device(
        "cpu",
        vendor,
        name,
        architecture=machine,
        memory_total=total,
        memory_free=free,
        flags=relevant(flags),
        support=support(flags, flags_known=bool(flags)),
    )


def from_macos(sysctl: str, vm_stat: str, machine: str) -> Device:
    """A CPU as macOS's `sysctl` and `vm_stat` describe it; `machine` is e.g. `"arm64"`."""
    name, memory, flags = parse_sysctl(sysctl)
    return Device(
        "cpu",
        "apple" if "Apple" in name else "intel",
        name,
        architecture=machine,
        memory_total=memory,
        memory_free=parse_vm_stat(vm_stat),
        flags=relevant(flags),
        support=support(flags, flags_known=bool(flags)),
    )


def probe() -> list[Device]:
    """The CPU of this machine: always one device, whatever the operating system tells."""
    machine = platform.machine()
    try:
        if sys.platform == "linux":
            cpuinfo = _LINUX_CPUINFO.read_text(encoding="utf-8", errors="replace")
            meminfo = _LINUX_MEMINFO.read_text(encoding="utf-8", errors="replace")
            return [within_limits(from_linux(cpuinfo, meminfo, machine), *cgroup.memory())]
        if sys.platform == "darwin":
            keys = ("machdep.cpu.brand_string", "hw.memsize", "hw.optional.arm")
            return [from_macos(_output(_SYSCTL, *keys), _output(_VM_STAT), machine)]
    except (OSError, subprocess.SubprocessError):
        pass  # A sandbox without /proc or sysctl: what `platform` knows has to do.
    name = platform.processor() or os.environ.get("PROCESSOR_IDENTIFIER") or "CPU"
    unknown = support(frozenset(), flags_known=False)
    return [Device("cpu", "unknown", name, architecture=machine, support=unknown)]


def _output(*command: str) -> str:
    # `sysctl` leaves with 1 if one key is unknown (Intel), and still prints the others.
    return subprocess.run(command, capture_output=True, text=True, timeout=2.0, check=False).stdout
