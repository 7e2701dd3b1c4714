"""The accelerators that this JAX can use. Importing this file imports JAX."""

import jax

from deepseek_hpf.hardware import cuda, oneapi, rocm, tpu
from deepseek_hpf.hardware.device import Device


def accelerators() -> list[Device]:
    """Devices of this process on JAX's default platform, unless that is the CPU.

    None are in use where `jax_default_device` keeps computations on the CPU. Asking starts JAX's
    runtime: `jax.distributed.initialize` has to come before it.
    """
    default = jax.config.jax_default_device
    if default is not None and str(getattr(default, "platform", default)) == "cpu":
        return []
    return [_device(entry) for entry in jax.local_devices() if entry.platform != "cpu"]


def _device(entry: jax.Device) -> Device:
    kind, platform = entry.device_kind, entry.platform
    memory = _memory(entry)
    if platform == "tpu":
        return tpu.device(kind, "", *memory)
    if platform in ("gpu", "cuda", "rocm"):
        told = str(getattr(entry, "compute_capability", ""))
        if told.startswith("gfx"):
            return rocm.device(kind, told, *memory)
        return cuda.device(kind, cuda.parse_capability(told), *memory)
    if platform in ("xpu", "sycl"):
        return oneapi.device(kind, oneapi.architecture_of_name(kind), *memory)
    return Device("gpu", "unknown", kind)


def _memory(entry: jax.Device) -> tuple[int | None, int | None]:
    """Bytes that JAX has the use of, and those of them that are free; None where it does not tell.

    On a GPU that is what JAX has set aside for itself, three quarters unless told otherwise.
    """
    try:
        told = entry.memory_stats() or {}
    except (AttributeError, NotImplementedError, RuntimeError):
        return None, None
    limit, used = told.get("bytes_limit", -1), told.get("bytes_in_use", -1)
    if limit <= 0:
        return None, None
    return limit, limit - used if 0 <= used <= limit else None
