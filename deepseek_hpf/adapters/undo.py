"""A log of what was changed on a model's objects, so that all of it can be taken back."""

from collections.abc import Callable, MutableMapping
from typing import Any

_ABSENT = object()


class UndoLog:
    """Changes attributes and remembers how to change them back.

    An entry is taken back only where the object still holds what was put there: what somebody else
    has changed since (a new `model.compile`, a policy set by hand) stays.
    """

    def __init__(self) -> None:
        self._entries: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, undo: Callable[[], None]) -> None:
        """Adds a step to be called when everything is taken back.

        Args:
            undo: The step.
        """
        self._entries.append(undo)

    def set_property(self, target: Any, name: str, value: Any) -> None:
        """Sets what reads and writes as an attribute, a property included.

        Args:
            target: The object.
            name: The attribute, which exists.
            value: Its new value.
        """
        before = getattr(target, name)
        setattr(target, name, value)

        def undo() -> None:
            if getattr(target, name, _ABSENT) is value:
                setattr(target, name, before)

        self._entries.append(undo)

    def set_on_instance(self, target: Any, name: str, value: Any) -> None:
        """Shadows an attribute of the class, a method say, by one of the instance.

        Args:
            target: The object.
            name: The attribute.
            value: Its new value.
        """
        before = vars(target).get(name, _ABSENT)
        setattr(target, name, value)

        def undo() -> None:
            if vars(target).get(name) is not value:
                return
            if before is _ABSENT:
                delattr(target, name)
            else:
                setattr(target, name, before)

        self._entries.append(undo)

    def clear_on_instance(self, target: Any, name: str) -> None:
        """Takes an attribute off the instance, so that the class's shows again.

        Args:
            target: The object.
            name: An attribute that is on the instance.
        """
        before = vars(target)[name]
        delattr(target, name)

        def undo() -> None:
            if name not in vars(target):
                setattr(target, name, before)

        self._entries.append(undo)

    def set_item(self, target: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Sets an item of a mapping.

        Args:
            target: The mapping.
            key: The key.
            value: Its new value.
        """
        before = target.get(key, _ABSENT)
        target[key] = value

        def undo() -> None:
            if target.get(key) is not value:
                return
            if before is _ABSENT:
                del target[key]
            else:
                target[key] = before

        self._entries.append(undo)

    def extend(self, other: "UndoLog") -> None:
        """Appends the entries of another log, which is emptied.

        Args:
            other: The log of a change that has come to its end.
        """
        self._entries.extend(other._entries)
        other._entries.clear()

    def undo(self) -> None:
        """Takes everything back, the last change first. A second call does nothing."""
        while self._entries:
            self._entries.pop()()
