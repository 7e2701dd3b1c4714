"""`hpf devices`: what this machine can do, per dtype, and what "auto" makes of it."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepseek_hpf.lazy import import_with_backend

if TYPE_CHECKING:
    from rich.table import Table

    from deepseek_hpf.hardware import Device
    from deepseek_hpf.scheduling.auto import PolicyChoice

STYLES = {"native": "green", "emulated": "yellow", "none": "red"}


def devices(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, for other programs.")
    ] = False,
) -> None:
    """Show the devices of this machine, what each dtype is on them, and what "auto" chooses."""
    # Keras brings in its back end, which alone knows what it can use of the machine.
    keras = import_with_backend("keras")
    from deepseek_hpf import hardware
    from deepseek_hpf.scheduling.auto import choose_policy

    backend = keras.backend.backend()
    usable = hardware.usable_devices(backend)
    choice = choose_policy(usable, backend)
    found, used = hardware.devices(), {device.name for device in usable}
    # A driver may hide what the framework sees, e.g. in a container.
    found += [device for device in usable if device.name not in {each.name for each in found}]
    if as_json:
        typer.echo(json.dumps(report(found, used, backend, choice), indent=2))
    else:
        _show(found, used, backend, choice)


def report(
    found: "list[Device]", used: set[str], backend: str, choice: "PolicyChoice"
) -> dict[str, Any]:
    """What `--json` prints.

    Args:
        found: The devices.
        used: Names of those that the back end can use.
        backend: Keras's name of it.
        choice: What "auto" is.

    Returns:
        Plain dictionaries and lists; memory is in bytes, null where unknown.
    """
    return {
        "backend": backend,
        "auto": {"policy": choice.name, "reason": choice.reason},
        "devices": [_described(device, device.name in used) for device in found],
    }


def _described(device: "Device", usable: bool) -> dict[str, Any]:
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
    }


def _show(found: "list[Device]", used: set[str], backend: str, choice: "PolicyChoice") -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    kinds: dict[tuple[str, str], list[Device]] = {}
    for device in found:
        kinds.setdefault((device.name, device.architecture), []).append(device)
    for same in kinds.values():
        device = same[0]
        console.print(_table(device, len(same)))
        if device.name not in used:
            console.print(f"Keras's back end, {backend}, cannot use it.", style="yellow")
    console.print(f'With Keras on {backend}, "auto" is {choice.name}.', style="bold")
    console.print(choice.reason)


def _table(device: "Device", count: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from deepseek_hpf.hardware.device import DTYPES

    table = Table(title=Text(_heading(device, count)), title_justify="left")
    for heading in ("dtype", "support", "reason"):
        table.add_column(heading, overflow="fold")
    for dtype in DTYPES:
        support = device.of(dtype)
        level = Text(support.level, style=STYLES[support.level])
        table.add_row(Text(dtype), level, Text(support.reason))
    return table


def _heading(device: "Device", count: int) -> str:
    times = f"{count} x " if count > 1 else ""
    parts = [f"{device.kind}: {times}{device.name}", device.architecture]
    if device.memory_total is not None:
        free = "" if device.memory_free is None else f", {_gib(device.memory_free)} free"
        parts.append(_gib(device.memory_total) + free)
    return ", ".join(part for part in parts if part)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
