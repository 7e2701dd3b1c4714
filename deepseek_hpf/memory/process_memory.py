"""How much memory a process has, and has had."""

import contextlib
import ctypes
import importlib
import os
import subprocess
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


def resident_memory(pid: int) -> int | None:
    """Returns the memory that a process has resident now.

    Args:
        pid: Its number.

    Returns:
        Bytes, or None where there is no such process or the system does not say.

    Example:
        >>> import os
        >>> resident_memory(os.getpid()) > 2**20
        True
    """
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None if sys.platform == "linux" else _resident_by_ps(pid)


def forget_peak() -> None:
    """Has `peak_memory` count from now on, after what is free went back to the system.

    Where the system cannot, nothing happens: the peak then is that of the whole process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


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


def _resident_by_ps(pid: int) -> int | None:
    command = ("ps", "-o", "rss=", "-p", str(pid))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2.0, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    words = done.stdout.split()
    return int(words[0]) * 1024 if words and words[0].isdecimal() else None
