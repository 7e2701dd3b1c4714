"""`hpf devices`: what this machine can do, per dtype, and what "auto" makes of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepseek_hpf.hardware import Device, ProbeResult
    from deepseek_hpf.scheduling.auto import PolicyChoice


@dataclass
class Machine:
    """What is shown.

    Args:
        devices: All devices.
        usable: Those that the back end can use.
        backend: Keras's name of the back end; empty where none can be used.
        trouble: Why there is no back end to use, in one sentence; empty where there is one.
        choice: What "auto" is; None without a back end.
        measured: Name of a device to what was measured there.
    """

    devices: "list[Device]"
    usable: "list[Device]" = field(default_factory=list)
    backend: str = ""
    trouble: str = ""
    choice: "PolicyChoice | None" = None
    measured: "dict[str, ProbeResult]" = field(default_factory=dict)

    def can_use(self, device: "Device") -> bool:
        """Whether the back end can use a device."""
        return device.name in {each.name for each in self.usable}


def devices(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs.")
    ] = False,
    probe: Annotated[
        bool, typer.Option(help="Measure what the dtypes reach, or take what was measured before.")
    ] = True,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure again, and keep that.")
    ] = False,
) -> None:
    """Show the devices of this machine, what each dtype is on them, and what "auto" chooses.

    Beside the datasheet's word stands what was measured through Keras's back end: a dtype that a
    device has may still be slow. Measuring takes a few seconds, the first time only.
    """
    from rich.console import Console

    with Console(stderr=True).status("Starting Keras's back end") as status:
        machine = look()
        if probe:
            measure(machine, refresh=refresh, say=status.update)
    if as_json:
        typer.echo(json.dumps(report(machine), indent=2))
    else:
        from deepseek_hpf.cli.devices_table import show

        show(machine)


def look() -> Machine:
    """Lists the devices, and asks Keras's back end which it can use.

    Returns:
        The machine, without figures.
    """
    from deepseek_hpf import hardware
    from deepseek_hpf.hardware.detect import BACKENDS
    from deepseek_hpf.lazy import import_with_backend
    from deepseek_hpf.scheduling.auto import choose_policy

    try:
        # Keras brings in its back end, which alone knows what it can use of the machine.
        backend = import_with_backend("keras").backend.backend()
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
        told = " ".join(str(error).split()) or type(error).__name__
        return Machine(hardware.devices(), trouble=told)
    if backend not in BACKENDS:
        trouble = f"Keras runs on {backend}, which does not train: set KERAS_BACKEND to "
        return Machine(hardware.devices(), trouble=f'{trouble}"tensorflow", "jax" or "torch".')
    usable = hardware.usable_devices(backend)
    found = hardware.devices()
    # A driver may hide what the framework sees, e.g. in a container.
    found += [device for device in usable if device.name not in {each.name for each in found}]
    return Machine(found, usable, backend, choice=choose_policy(usable, backend))


def measure(machine: Machine, *, refresh: bool, say: Any) -> None:
    """Measures each kind of device that the back end can use.

    Args:
        machine: Takes the figures.
        refresh: Whether to measure what was measured before.
        say: Is told what is being done.
    """
    from deepseek_hpf import hardware
    from deepseek_hpf.errors import ConfigError

    for device in machine.usable:
        if device.name in machine.measured:
            continue

        def progress(text: str, name: str = device.name) -> None:
            say(f"Measuring {name}: {text}")

        try:
            found = hardware.probe(device, refresh=refresh, progress=progress)
        except ConfigError:  # e.g. a CPU that JAX was told not to use
            continue
        machine.measured[device.name] = found


def report(machine: Machine) -> dict[str, Any]:
    """What `--json` prints.

    Args:
        machine: The machine.

    Returns:
        Plain dictionaries and lists; memory is in bytes, rates in FLOP/s and bytes/s, null where
        unknown.
    """
    choice = machine.choice
    return {
        "backend": machine.backend or None,
        "trouble": machine.trouble or None,
        "auto": None if choice is None else {"policy": choice.name, "reason": choice.reason},
        "devices": [
            _described(device, machine.can_use(device), machine.measured.get(device.name))
            for device in machine.devices
        ],
    }


def _described(device: "Device", usable: bool, found: "ProbeResult | None") -> dict[str, Any]:
    capability = device.compute_capability
    return {
        "kind": device.kind,
        "vendor": device.vendor,
        "name": device.name,
        "architecture": device.architecture,
        "memory_total": device.memory_total,
        "memory_free": device.memory_free,
        "compute_capability": None if capability is None else list(capability),
        "flags": sorted(device.flags),
        "usable": usable,
        "support": {
            dtype: {"level": support.level, "reason": support.reason}
            for dtype, support in device.support.items()
        },
        "measured": None if found is None else _figures(found),
    }


def _figures(found: "ProbeResult") -> Mapping[str, Any]:
    from deepseek_hpf.hardware.throughput import UNITS, WORKS

    return {
        each.dtype: {
            work: {
                "rate": each.of(work).rate,
                "unit": UNITS[work],
                "ratio_to_float32": found.ratio(each.dtype, work),
                "note": each.of(work).note,
            }
            for work in WORKS
        }
        for each in found.throughputs
    }
