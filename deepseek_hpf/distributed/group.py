"""What the ranks of a training talk through, whatever the engine."""

from collections.abc import Sequence
from typing import Any, Protocol

LEADER = 0


class Group(Protocol):
    """The ranks that train one model. Every method is called by all of them, in the same order.

    Attributes:
        rank: Number of this one, from 0; the leader is 0.
        size: How many there are.
    """

    @property
    def rank(self) -> int:
        """Number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds numbers over the ranks, in float64; all ranks get the same bits."""

    def broadcast(self, value: Any) -> Any:
        """Returns the leader's value, a JSON value."""

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's value, a JSON value, in the order of the ranks."""


class Alone:
    """A training of one process."""

    rank = LEADER
    size = 1

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the numbers."""
        return list(values)

    def broadcast(self, value: Any) -> Any:
        """Returns the value."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Returns the value as the only one."""
        return [value]
