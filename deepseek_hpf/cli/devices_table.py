"""The tables of `hpf devices`."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deepseek_hpf.cli.devices import Machine
from deepseek_hpf.hardware import Device, ProbeResult
from deepseek_hpf.hardware.device import DTYPES
from deepseek_hpf.hardware.throughput import UNITS, WORKS, Work

STYLES = {"native": "green", "emulated": "yellow", "none": "red"}
# Times float32's speed: from here on a format gains, and below here it loses.
_GAINS, _LOSES = 1.1, 0.9


def show(machine: Machine) -> None:
    """Prints a table for each kind of device, and what "auto" is.

    Args:
        machine: The machine.
    """
    console = Console(highlight=False, markup=False, emoji=False)
    kinds: dict[tuple[str, str], list[Device]] = {}
    for device in machine.devices:
        kinds.setdefault((device.name, device.architecture), []).append(device)
    for same in kinds.values():
        device, found = same[0], machine.measured.get(same[0].name)
        console.print(_table(device, len(same), found))
        if found is not None:
            for line in _remarks(device, found):
                console.print(line, style="dim")
        if machine.backend and not machine.can_use(device):
            console.print(f"Keras's back end, {machine.backend}, cannot use it.", style="yellow")
    if machine.trouble:
        console.print(f"No back end to measure with. {machine.trouble}", style="yellow")
    if machine.choice is not None:
        console.print(
            f'With Keras on {machine.backend}, "auto" is {machine.choice.name}.', style="bold"
        )
        console.print(machine.choice.reason)


def _table(device: Device, count: int, found: ProbeResult | None) -> Table:
    table = Table(title=Text(_heading(device, count)), title_justify="left")
    table.add_column("dtype", overflow="fold")
    table.add_column("support", overflow="fold")
    if found is None:
        table.add_column("reason", overflow="fold")
    else:
        for work in WORKS:
            table.add_column(f"{work}\nG{UNITS[work]}", justify="right")
    for dtype in DTYPES:
        support = device.of(dtype)
        level = Text(support.level, style=STYLES[support.level])
        if found is None:
            table.add_row(Text(dtype), level, Text(support.reason))
        else:
            table.add_row(Text(dtype), level, *(_cell(found, dtype, work) for work in WORKS))
    return table


def _cell(found: ProbeResult, dtype: str, work: Work) -> Text:
    """A rate in billions, and how many times float32's it is."""
    if dtype not in {each.dtype for each in found.throughputs}:
        return Text()
    figure = found.of(dtype).of(work)
    if figure.rate is None:
        return Text("" if (dtype, work) == ("float32", "cast") else "none")
    rate = Text(f"{figure.rate / 1e9:.3g}" if figure.rate < 1e11 else f"{figure.rate / 1e9:.0f}")
    ratio = found.ratio(dtype, work) if dtype != "float32" else None
    if ratio is None:
        return rate
    style = "green" if ratio >= _GAINS else "red" if ratio < _LOSES else ""
    return rate.append(f" ({ratio:.2f}x)", style=style)


def _remarks(device: Device, found: ProbeResult) -> Iterator[str]:
    """Why a format is what it is, and what is to be said of figures."""
    reasons: dict[str, list[str]] = {}
    for dtype in DTYPES:
        support = device.of(dtype)
        reasons.setdefault(f"{support.level}: {support.reason}", []).append(dtype)
    for reason, dtypes in reasons.items():
        yield f"{', '.join(dtypes)} {reason}"
    for each in found.throughputs:
        for work in WORKS:
            if (each.dtype, work) != ("float32", "cast") and each.of(work).note:
                yield f"{each.dtype}, {work}: {each.of(work).note}"
    yield (
        f"Measured with Keras on {found.backend}, products and convolutions with their gradients; "
        "in brackets, times float32."
    )


def _heading(device: Device, count: int) -> str:
    times = f"{count} x " if count > 1 else ""
    parts = [f"{device.kind}: {times}{device.name}", device.architecture]
    if device.memory_total is not None:
        free = "" if device.memory_free is None else f", {_gib(device.memory_free)} free"
        parts.append(_gib(device.memory_total) + free)
    return ", ".join(part for part in parts if part)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
