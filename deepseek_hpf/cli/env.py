"""`hpf env`: what a bug report needs to say about the machine and what is installed."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

PACKAGES = (
    "deepseek_hpf",
    "keras",
    "tensorflow",
    "jax",
    "jaxlib",
    "torch",
    "numpy",
    "scipy",
    "pydantic",
    "tensorflow-datasets",
    "tensorboard",
    "nvidia-ml-py",
)
# What changes the precision, the speed or the devices of a training.
VARIABLES = (
    "KERAS_BACKEND",
    "KERAS_HOME",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "JAX_PLATFORMS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS",
    "TF_XLA_FLAGS",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA",
    "OMP_NUM_THREADS",
)


def env(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs.")
    ] = False,
) -> None:
    """Print the versions, the devices and the settings that a bug report needs.

    It starts no framework, so that it also works where one is broken. Of the environment it prints
    only what bears on the training: nothing secret, no path but Keras's own.
    """
    found = environment()
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


def environment() -> dict[str, Any]:
    """Collects what is printed.

    Returns:
        Section to its entries, as JSON values; a package that is not installed has None.
    """
    return {
        "system": _system(),
        "packages": {name: _version(name) for name in PACKAGES},
        "keras": _keras(),
        "devices": [_device(device) for device in _devices()],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _system() -> dict[str, str]:
    import platform

    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": platform.platform(),
    }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _keras() -> dict[str, Any]:
    """Keras's settings: the file's, and what of the environment is stronger."""
    settings: dict[str, Any] = {"backend": "tensorflow", "floatx": "float32"}
    settings.update(_keras_file())
    if backend := os.environ.get("KERAS_BACKEND"):
        settings["backend"] = backend
    return settings


def _keras_file() -> Mapping[str, Any]:
    from pathlib import Path

    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        held = json.loads(Path(home, "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def _devices() -> list[Any]:
    from deepseek_hpf import hardware

    return hardware.devices()


def _device(device: Any) -> dict[str, Any]:
    return {
        "name": device.name,
        "kind": device.kind,
        "architecture": device.architecture,
        "memory_bytes": device.memory_total,
        "dtypes": {dtype: support.level for dtype, support in device.support.items()},
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _entries(found["system"])
    yield from _entries({name: held or "not installed" for name, held in found["packages"].items()})
    yield from _entries({f"keras.{name}": held for name, held in found["keras"].items()})
    for device in found["devices"]:
        memory = device["memory_bytes"]
        size = "" if memory is None else f", {memory / 2**30:.1f} GiB"
        yield f"{device['kind']}: {device['name']} ({device['architecture']}{size})"
        yield from _entries({f"  {dtype}": level for dtype, level in device["dtypes"].items()})
    yield from _entries({f"${name}": held for name, held in found["variables"].items()})


def _entries(entries: Mapping[str, Any]) -> Iterator[str]:
    for name, held in entries.items():
        yield f"{name}: {held}"
