"""How much memory this process has had."""

import importlib
import sys
from pathlib import Path

_UNIT_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes


def peak_memory() -> int | None:
    """Returns the most memory that this process has had resident at once, in bytes.

    Linux counts per address space in `/proc/self/status`; `getrusage` there includes what a parent
    had before it started this process, so it serves other systems only.

    Returns:
        Bytes, or None where the system does not say.

    Example:
        >>> peak_memory() > 2**20
        True

    References:
        https://man7.org/linux/man-pages/man5/proc_pid_status.5.html (VmHWM)
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return _peak_by_getrusage()
    return peak_in_status(status)


def peak_in_status(status: str) -> int | None:
    """Returns the bytes of the line `VmHWM:   1234 kB` in a text, or None without such a line."""
    for line in status.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "VmHWM:" and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def _peak_by_getrusage() -> int | None:
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * _UNIT_OF_MAXRSS
