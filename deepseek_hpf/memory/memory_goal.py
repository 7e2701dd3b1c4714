"""The storages that move the gradient least within a goal of bytes."""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import keras

from deepseek_hpf.adapters.activation_storage import StorageChooser
from deepseek_hpf.memory.compression_report import CompressionRow
from deepseek_hpf.memory.measured_storage import MeasuredStorage
from deepseek_hpf.memory.storage_units import Unit, units
from deepseek_hpf.scheduling.storage_assignment import (
    StorageAssignment,
    StorageOption,
    assign_storages,
)
from deepseek_hpf.storage.kept_count import KeptCount
from deepseek_hpf.tuning.training_step import on_device

Options = dict[str | None, StorageOption]


@dataclass(frozen=True)
class GoalMet:
    """What has been decided.

    Args:
        rows: The report's, one for each layer.
        chosen: Layers and the storages that they are to have.
        assignment: The decision in figures.
    """

    rows: list[CompressionRow]
    chosen: list[tuple[keras.Layer, str]]
    assignment: StorageAssignment


def meet_goal(
    model: keras.Model,
    goal: float,
    batch: object,
    *,
    chooser: StorageChooser,
    seed: int,
    smallest: int,
) -> GoalMet:
    """Measures, and decides; the model stays as it is.

    Args:
        model: A built, compiled model.
        goal: The most that may be kept, as a share of what is kept as computed.
        batch: `(x, y)` or `(x, y, sample_weight)`.
        chooser: Makes the wrappers.
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.

    Returns:
        The decision.

    Raises:
        ConfigError: The goal cannot be met, the batch is none, or its gradient is not finite.
    """
    found = units(model, chooser)
    deciding = {unit.walked.path: unit for unit in found if unit.storages}
    count = KeptCount(seed, smallest)
    with MeasuredStorage.of(model, on_device(batch)) as measured:
        measured.counted({path: unit.walked.layer for path, unit in deciding.items()}, count)
        options = {path: _exact_options(unit, count) for path, unit in deciding.items()}
        lossy = [each for unit in deciding.values() for each in _lossy(unit, count)]
        trials = [(unit.walked.layer, storage) for unit, storage in lossy]
        errors = measured.errors(trials, chooser)
    for (unit, storage), error in zip(lossy, errors, strict=True):
        path = unit.walked.path
        options[path][storage] = StorageOption(error**2, _kept(count, path, storage))
    assignment = assign_storages(options, count.sizes, goal)
    rows = [_row(unit, options, count, assignment) for unit in found]
    chosen = [
        (deciding[path].walked.layer, storage)
        for path, storage in assignment.storages.items()
        if storage is not None
    ]
    return GoalMet(rows, chosen, assignment)


def _exact_options(unit: Unit, count: KeptCount) -> Options:
    path = unit.walked.path
    whole, few = _kept(count, path, None), _kept(count, path, "sparse")
    options: Options = {None: StorageOption(0.0, whole)}
    if "sparse" in unit.storages and few != whole:
        options["sparse"] = StorageOption(0.0, few)
    return options


def _lossy(unit: Unit, count: KeptCount) -> list[tuple[Unit, str]]:
    """What has to be tried: storages under which anything else is kept than as computed."""
    path = unit.walked.path
    storages = [s for s in unit.storages if s != "sparse"]
    return [(unit, s) for s in storages if _kept(count, path, s) != _kept(count, path, None)]


def _kept(count: KeptCount, path: str, storage: str | None) -> frozenset[Hashable]:
    return frozenset(count.keeps[path][storage])


def _row(
    unit: Unit, options: dict[str, Options], count: KeptCount, assignment: StorageAssignment
) -> CompressionRow:
    walked = unit.walked
    if not unit.storages:
        return CompressionRow(walked.path, walked.class_name, None, unit.reason)
    storage = assignment.storages[walked.path]
    reason = "" if storage else _why_left(options[walked.path])
    return CompressionRow(
        walked.path,
        walked.class_name,
        storage,
        reason,
        bytes_before=count.bytes_of(walked.path, None),
        bytes_after=count.bytes_of(walked.path, storage),
        error=math.sqrt(options[walked.path][storage].error),
    )


def _why_left(options: Options) -> str:
    return "the goal is met without" if len(options) > 1 else "it keeps nothing that can be packed"
