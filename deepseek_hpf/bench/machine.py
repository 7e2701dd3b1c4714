"""Where a benchmark runs: devices, versions, the system."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

from deepseek_hpf import hardware
from deepseek_hpf.bench.records import Machine

_BELONGS = {"jax": ("jax", "jaxlib"), "tensorflow": ("tensorflow",), "torch": ("torch",)}
_FORMATS = ("bfloat16", "float16")


def this_machine(backend: str) -> Machine:
    """Returns what is known of the machine.

    Args:
        backend: Keras's name of the back end; its framework has to be loaded.

    Returns:
        The record.
    """
    usable = hardware.usable_devices(backend)
    used = [device for device in usable if device.kind != "cpu"] or usable
    last = used[-1]
    formats = {name: f"{last.of(name).level} ({last.of(name).reason})" for name in _FORMATS}
    cpu = f"{usable[0].name}, {_cores()} cores"
    names = tuple(cpu if device.kind == "cpu" else device.name for device in used)
    return Machine(
        backend=backend,
        devices=tuple(dict.fromkeys(names)),
        formats=formats,
        system=f"{platform.system()}, Python {platform.python_version()}",
        versions=dict(_versions(backend)),
    )


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions(backend: str) -> Iterator[tuple[str, str]]:
    for name in ("deepseek_hpf", "keras", *_BELONGS.get(backend, ())):
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
