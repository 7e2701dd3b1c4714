"""Where the first inf or NaN of a step was born, told from what passed at each layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from deepseek_hpf.scheduling.telemetry import Phase

Kind = Literal["output", "loss", "output_gradient", "input_gradient", "weight_gradient", "pull"]


@dataclass
class Mark:
    """A tensor that passed.

    Args:
        kind: What it was; a `"pull"` is what an update of a weight goes by: its gradient without
            the scale, or the sum of those that are accumulated.
        path: Path of the layer that it belongs to; empty for the model itself and the loss.
        is_low: Whether its dtype is narrower than float32.
        is_bad: Whether there was an inf or a NaN in it.
    """

    kind: Kind
    path: str = ""
    is_low: bool = False
    is_bad: bool = False


@dataclass(frozen=True)
class Fault:
    """The first tensor that was not finite.

    Args:
        phase: In which phase of the step it was made.
        layer: Path of the layer that made it; None where that was the loss or the model itself.
    """

    phase: Phase
    layer: str | None


def is_skipped(marks: Iterable[Mark]) -> bool:
    """Whether an optimizer would skip the step.

    Args:
        marks: What passed.

    Returns:
        Whether a gradient of a weight was not finite.
    """
    return any(mark.is_bad for mark in marks if mark.kind == "weight_gradient")


def summed_fault(marks: Iterable[Mark]) -> Fault | None:
    """Finds the first weight whose gradient overflows as the optimizer sums it.

    Args:
        marks: What passed.

    Returns:
        The fault; None where all was finite.
    """
    paths = (mark.path for mark in marks if mark.kind == "pull" and mark.is_bad)
    return next((Fault("backward", path or None) for path in paths), None)


def first_fault(marks: Sequence[Mark]) -> Fault | None:
    """Finds what made the first value that was not finite, forward and then backward.

    Args:
        marks: What passed, in order; gradients of weights last.

    Returns:
        The fault; None where all was finite.
    """
    return _forward_fault(marks) or backward_fault(marks)


def _forward_fault(marks: Sequence[Mark]) -> Fault | None:
    last = None
    for mark in marks:
        if mark.kind == "output":
            # What the model's own `call` did to the result of a layer was done in its precision.
            last = mark.path or last
            if mark.is_bad:
                return Fault("forward", last)
        elif mark.kind == "loss" and mark.is_bad:
            return Fault("loss", None)
    return None


def backward_fault(marks: Sequence[Mark]) -> Fault | None:
    """Finds what made the first gradient that was not finite.

    A gradient that leaves a layer, to its input or to a weight, was made by that layer. One that
    arrives already bad, though none left a layer so before, was made by the loss, or cast to the
    dtype of the layer's result, which is then to blame.

    Args:
        marks: As for `first_fault`.

    Returns:
        The fault; None where all gradients were finite.
    """
    ordered = _in_backward_order(marks)
    for index, mark in enumerate(ordered):
        if not mark.is_bad:
            continue
        if mark.kind != "output_gradient":
            return Fault("backward", mark.path)
        if not mark.is_low and not any(m.kind == "input_gradient" for m in ordered[:index]):
            return Fault("loss", None)
        return Fault("backward", _innermost(ordered[index:]))
    return None


def _in_backward_order(marks: Sequence[Mark]) -> list[Mark]:
    """The gradients, those of weights placed behind the last one that arrived at their layer."""
    gradients = [m for m in marks if m.kind in ("output_gradient", "input_gradient")]
    arrived = {m.path: i for i, m in enumerate(gradients) if m.kind == "output_gradient"}
    weights = [m for m in marks if m.kind == "weight_gradient"]
    placed = [
        *((float(index), mark) for index, mark in enumerate(gradients)),
        *((arrived.get(mark.path, len(gradients)) + 0.5, mark) for mark in weights),
    ]
    return [mark for _, mark in sorted(placed, key=lambda each: each[0])]


def _innermost(marks: Sequence[Mark]) -> str:
    """A gradient that arrives at a composite layer arrives next at the layer inside."""
    path = marks[0].path
    for mark in marks[1:]:
        if mark.kind != "output_gradient" or not mark.path.startswith(f"{path}/"):
            break
        path = mark.path
    return path
