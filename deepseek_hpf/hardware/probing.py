"""`probe`: measures what number formats reach on a device, and keeps it."""

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from deepseek_hpf.dtypes import format_of
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware.detect import BACKENDS, usable_devices
from deepseek_hpf.hardware.device import Device
from deepseek_hpf.hardware.measuring import measure
from deepseek_hpf.hardware.throughput import (
    NO_TIME,
    WORKS,
    Figure,
    ProbeResult,
    Throughput,
    Work,
)
from deepseek_hpf.hardware.workloads import WORKLOADS
from deepseek_hpf.measurement_cache import MeasurementCache

KIND = "probes"
DTYPES = ("float32", "bfloat16", "float16")
_METHOD = 1  # of measuring: figures taken by another are not found


def probe(
    device: Device | None = None,
    dtypes: Sequence[str] = DTYPES,
    *,
    time_budget: float = 10.0,
    refresh: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> ProbeResult:
    """Measures what number formats reach on a device, through the running Keras back end.

    A format that the datasheet calls native may still be slow, where the back end has no kernels
    for it: then the tuner need not try it. Products of matrices and convolutions are timed with
    their gradients, since one of them may be slow alone. The formats take turns, so that what else
    runs on the machine hits all. A format that is far slower than float32 is stopped after a small
    work; one that fails has the reason in place of the figure.

    Args:
        device: One of `hardware.usable_devices`; None for the one that the back end prefers.
        dtypes: Names of the formats. Ratios are to float32, which should be the first.
        time_budget: Seconds after which nothing more is begun. A probe takes three to six seconds
            on a CPU that does nothing else.
        refresh: Whether to measure although a result of an earlier call is kept.
        progress: Is told what is being measured, in a few words.

    Returns:
        The figures. Those that the time did not suffice for are missing; the next call takes them.

    Raises:
        ConfigError: A dtype is unknown, the back end cannot use the device, or it cannot train.

    Example:
        >>> from deepseek_hpf import hardware
        >>> found = hardware.probe(dtypes=["float32"], time_budget=0.5)
        >>> found.of("float32").dtype
        'float32'
    """
    backend = keras.backend.backend()
    if backend not in BACKENDS:
        raise ConfigError(
            "Expected Keras on a back end that trains, one of "
            f"{', '.join(BACKENDS)}. Received: KERAS_BACKEND={backend!r}"
        )
    dtypes = _checked(dtypes)
    usable = usable_devices(backend)
    preferred = preferred_device(usable)
    asked = preferred if device is None else device
    place = _place(asked, usable)
    cache, key = MeasurementCache(KIND), _key(asked, backend, dtypes)
    kept = None if refresh else _kept(cache, key)
    missing = [work for work in WORKLOADS if kept is None or not _is_measured(kept, work.name)]
    if kept is not None and not missing:
        return kept
    first, until = 0 if asked.kind == "cpu" else 2, time.monotonic() + time_budget
    is_preferred = (asked.kind, asked.name) == (preferred.kind, preferred.name)
    with contextlib.nullcontext() if is_preferred else _scope(place):
        figures = {each.name: measure(each, dtypes, first, until, progress) for each in missing}
    result = ProbeResult(asked.name, backend, _joined(dtypes, kept, figures))
    if any(_is_measured(result, work) for work in figures):
        cache.put(key, result.to_dict())
    return result


def preferred_device(usable: Sequence[Device]) -> Device:
    """Where a back end computes if nothing is said: the first accelerator, else the CPU.

    Args:
        usable: What the back end can use, at least the CPU.

    Returns:
        One of them.
    """
    return next((device for device in usable if device.kind != "cpu"), usable[0])


def _joined(
    dtypes: Sequence[str], kept: ProbeResult | None, figures: Mapping[Work, Mapping[str, Figure]]
) -> tuple[Throughput, ...]:
    def figure(dtype: str, work: Work) -> Figure:
        if work in figures or kept is None:
            return figures[work][dtype]
        return kept.of(dtype).of(work)

    return tuple(
        Throughput(dtype, **{work: figure(dtype, work) for work in WORKS}) for dtype in dtypes
    )


def _is_measured(result: ProbeResult, work: Work) -> bool:
    return all(each.of(work).note != NO_TIME for each in result.throughputs)


def _checked(dtypes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(dtypes, str) or not dtypes:
        raise ConfigError(
            'Expected `dtypes` to be names of formats, e.g. ("float32", "bfloat16"). '
            f"Received: dtypes={dtypes!r}"
        )
    return tuple(dict.fromkeys(format_of(dtype).name for dtype in dtypes))


def _place(device: Device, usable: Sequence[Device]) -> str:
    """Keras's name of a device: its kind, and its number among those of its kind."""
    wanted = getattr(device, "kind", None), getattr(device, "name", None)
    for kind in {each.kind: None for each in usable}:
        names = [each.name for each in usable if each.kind == kind]
        if wanted[0] == kind and wanted[1] in names:
            return f"{kind}:{names.index(wanted[1])}"
    raise ConfigError(
        "Expected `device` to be one that the back end can use: "
        f"{', '.join(each.name for each in usable)}. Received: device={wanted[1] or device!r}"
    )


def _scope(place: str) -> contextlib.AbstractContextManager[object]:
    try:
        scope: contextlib.AbstractContextManager[object] = keras.device(place)
    except (RuntimeError, ValueError) as error:  # e.g. JAX_PLATFORMS leaves the CPU out
        raise ConfigError(
            "Expected a device that the back end is not kept from. "
            f"Received: {place!r}, on which Keras cannot compute: {error}"
        ) from error
    return scope


def _key(device: Device, backend: str, dtypes: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "method": _METHOD,
        "device": [device.kind, device.name, device.architecture, sorted(device.flags)],
        "cores": _cores(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "backend": backend,
        "versions": {name: importlib.metadata.version(name) for name in ("keras", backend)},
        "layout": keras.config.image_data_format(),
        "dtypes": list(dtypes),
    }


def _cores() -> int | None:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _kept(cache: MeasurementCache, key: dict[str, Any]) -> ProbeResult | None:
    value = cache.get(key)
    try:
        return None if value is None else ProbeResult.from_dict(value)
    except ConfigError:  # damaged, or of another version: measured again
        return None
