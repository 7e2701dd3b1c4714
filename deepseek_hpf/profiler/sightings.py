"""What a recorded step has seen: layers that ran, tensors on their way, operations inside."""

from dataclasses import dataclass, field
from typing import Any

LOSS = "loss"


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
