"""Something for each optimizer, known by the order in which the optimizers first step."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch

T = TypeVar("T")


class PerOptimizer(Generic[T]):
    """One value for each optimizer that is alive.

    Optimizers have no names, so what was saved is given out in the order of their first steps.

    Args:
        create: Makes the value of an optimizer for which nothing was saved.
    """

    def __init__(self, create: Callable[[], T]):
        self._create = create
        self._known: WeakKeyDictionary[torch.optim.Optimizer, T] = WeakKeyDictionary()
        self._waiting: list[T] = []

    def of(self, optimizer: torch.optim.Optimizer) -> T:
        """Returns the value of an optimizer."""
        if optimizer not in self._known:
            self._known[optimizer] = self._waiting.pop(0) if self._waiting else self._create()
        return self._known[optimizer]

    def values(self) -> list[T]:
        """Returns all values, in order."""
        return [*self._known.values(), *self._waiting]

    def load(self, values: Iterable[T]) -> None:
        """Forgets all optimizers; the values wait for those that step."""
        self._known.clear()
        self._waiting = list(values)
