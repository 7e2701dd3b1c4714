"""What has been packed within a trace, such that layers share packed forms."""

import weakref
from typing import Any

import jax

from deepseek_hpf.storage.packed_values_jax import Form


class PackedOnce:
    """Finds the packed form of an array again.

    It holds nothing alive: arrays are known by weak references, and only those of a trace, whose
    identity says that they are the same value.

    Args:
        known: Where to note it; several may share it.
    """

    def __init__(self, known: dict[Any, Any]):
        self._known = known

    def find(self, value: Any, form: Form) -> Any | None:
        """Looks a packed form up.

        Args:
            value: The array.
            form: Its form.

        Returns:
            The packed form; None where it has not been packed so.
        """
        reference, parts, tree = self._known.get((id(value), form), (_nothing, [], None))
        leaves = [part() for part in parts]
        if reference() is not value or any(leaf is None for leaf in leaves):
            return None
        return jax.tree.unflatten(tree, leaves)

    def note(self, value: Any, form: Form, packed: Any) -> None:
        """Notes a packed form.

        Args:
            value: The array.
            form: Its form.
            packed: What it has been packed to.
        """
        leaves, tree = jax.tree.flatten(packed)
        if not isinstance(value, jax.core.Tracer) or any(
            getattr(leaf, "_trace", None) is not value._trace for leaf in leaves
        ):
            return
        self._forget_freed()
        parts = [weakref.ref(leaf) for leaf in leaves]
        self._known[id(value), form] = (weakref.ref(value), parts, tree)

    def _forget_freed(self) -> None:
        freed = [key for key, (reference, _, _) in self._known.items() if reference() is None]
        for key in freed:
            del self._known[key]


def _nothing() -> None:
    return None
