"""What a recorded step has seen: layers that ran, tensors on their way, operations inside."""

import re
from dataclasses import dataclass, field
from typing import Any

from deepseek_hpf.profiler.statistics import Summary
from deepseek_hpf.profiler.tensors import dtype_of, is_float, size_of

LOSS = "loss"
_LAST = 20


@dataclass
class Target:
    """A layer or operation that is watched, and what was seen of it.

    Args:
        path: Path of the layer, or name of the operation.
        operation: The object.
        parent: Path of what holds it.
        is_layer: Whether it has a dtype policy.
    """

    path: str
    operation: Any
    parent: str | None = None
    is_layer: bool = True
    inputs: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    elements: int = 0
    output_elements: int = 0
    calls: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Passage:
    """A float tensor that went from its maker to its user.

    Args:
        source: Path of the maker; empty where it came from outside.
        target: Path of the user.
        before: Dtype in which it was made.
        after: Dtype in which it is used.
        elements: Number of elements.
    """

    source: str
    target: str
    before: str
    after: str
    elements: int


@dataclass(frozen=True)
class SeenOperation:
    """An operation of the framework, as it ran inside a layer.

    Args:
        path: Path of the layer.
        name: Its name in the framework.
        inputs: Float dtypes that went in.
        outputs: Float dtypes that came out.
        reduced: Elements that went in for each that came out.
    """

    path: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reduced: int


@dataclass(frozen=True)
class Arrival:
    """The first tensor that came along with an infinity or a NaN in it.

    Args:
        phase: `"forward"`, `"loss"` or `"backward"`.
        path: Path of the layer that returned it or whose output it is the gradient of; `"loss"`.
        value: `"inf"` or `"nan"`.
        step: Number of the step.
        is_of_weight: Whether it is the gradient of a weight of the layer.
        history: Paths and ranges of the last tensors before it, then its own.
    """

    phase: str
    path: str
    value: str
    step: int
    is_of_weight: bool
    history: tuple[tuple[str, Summary], ...]


class Sightings:
    """What was seen so far; the steps add to it."""

    def __init__(self) -> None:
        self.passages: dict[Passage, int] = {}
        self.operations: dict[SeenOperation, int] = {}
        self.summaries: dict[tuple[str, str, str], Summary] = {}
        self.first_nonfinite: Arrival | None = None
        self.step = 0
        self._recent: list[tuple[str, Summary]] = []

    def note_operation(self, path: str, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes note of an operation of a layer.

        Args:
            path: Path of the layer.
            name: Its name in the framework.
            inputs: Its tensors.
            outputs: Its results.
        """
        given = [x for x in inputs if is_float(x)]
        made = [x for x in outputs if is_float(x)]
        if not given or not made:
            return
        reduced = size_of(given[0]) // max(1, size_of(made[0]))
        if "cum" in name.lower():
            reduced = max([int(d or 0) for d in given[0].shape], default=1)
        operation = SeenOperation(
            path, name, tuple(map(dtype_of, given)), tuple(map(dtype_of, made)), reduced
        )
        self.operations[operation] = self.operations.get(operation, 0) + 1

    def note_passage(self, passage: Passage) -> None:
        """Takes note of a tensor that arrived at its user.

        Args:
            passage: Where it came from, and how.
        """
        self.passages[passage] = self.passages.get(passage, 0) + 1

    def note_summary(self, path: str, kind: str, summary: Summary, name: str = "") -> None:
        """Adds a summary to the range of a layer's tensors of one kind.

        Args:
            path: Path of the layer.
            kind: As in `RangeRow`.
            summary: The summary.
            name: Name of the weight.
        """
        total = self.summaries.setdefault((path, kind, name), Summary(summary.dtype))
        total.merge(summary)

    def look(self, path: str, phase: str, summary: Summary) -> None:
        """Remembers a tensor's range in case that what comes next is not finite.

        Args:
            path: Path of the layer.
            phase: `"forward"`, `"loss"`, `"backward"` or `"weight_gradient"`.
            summary: Its range.
        """
        self._recent.append((path, summary))
        del self._recent[: -(_LAST + 1)]
        if summary.nonfinite is not None and self.first_nonfinite is None:
            is_of_weight = phase == "weight_gradient"
            self.first_nonfinite = Arrival(
                "backward" if is_of_weight else phase,
                path,
                summary.nonfinite,
                self.step,
                is_of_weight,
                tuple(self._recent),
            )


def scope_name(target: int | str) -> str:
    """Name of the scope of a trace that belongs to a target.

    Args:
        target: Its number among the targets, or `LOSS`.

    Returns:
        A name that `scoped_path` finds again.
    """
    return f"hpf_{target}_"


def scoped_path(targets: list[Target], stack: str) -> str:
    """Path of the target that a traced operation belongs to.

    Args:
        targets: What is watched.
        stack: The scopes that the operation was traced in, as JAX writes them.

    Returns:
        The innermost one's path; empty outside of all.
    """
    places = re.findall(scope_name(r"(\d+|loss)"), stack)
    if not places:
        return ""
    return LOSS if places[-1] == LOSS else targets[int(places[-1])].path
