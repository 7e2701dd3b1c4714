"""The memory that Linux's control groups leave to this process, e.g. in a container."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**62  # Version 1 writes the largest number of pages there is.


@dataclass(frozen=True)
class _Names:
    """The files of a version of control groups."""

    limit: str
    used: str
    # Page cache that the kernel gives back when memory is wanted; it counts as used.
    reclaimable: str


_V2 = _Names("memory.max", "memory.current", "inactive_file")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory() -> tuple[int | None, int | None]:
    """The tightest limit on this process's memory.

    A group is bound by the limits of those around it too. In a container, the group's own path may
    not be visible; what is at the root of the mounted files is then its own.

    Returns:
        The limit and what is left of it, in bytes; None for each that there is not.

    References:
        Linux kernel documentation, "Control Group v2" and "Memory Resource Controller".
    """
    try:
        groups = _MEMBERSHIP.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, None
    found = [pair for folder, names in _folders(groups) if (pair := _limit(folder, names))]
    if not found:
        return None, None
    left = [free for _, free in found if free is not None]
    return min(limit for limit, _ in found), min(left, default=None)


def _folders(groups: str) -> Iterator[tuple[Path, _Names]]:
    """Folders of the groups that this process is in, and of those around them."""
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            mount, names = _MOUNT / "memory", _V1
        elif not controllers:
            mount, names = _MOUNT, _V2
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for count in range(len(parts) + 1):
            yield mount.joinpath(*parts[:count]), names


def _limit(folder: Path, names: _Names) -> tuple[int, int | None] | None:
    limit = _number(folder / names.limit)
    if limit is None or limit >= _NO_LIMIT:
        return None
    used = _number(folder / names.used)
    if used is None:
        return limit, None
    return limit, max(limit - max(used - _reclaimable(folder, names), 0), 0)


def _reclaimable(folder: Path, names: _Names) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == names.reclaimable and value.isdecimal():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    """The number in a file; None if it is not there, or is `max`."""
    text = _text(file).strip()
    return int(text) if text.isdecimal() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
