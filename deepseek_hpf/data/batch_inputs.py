"""The inputs of a batch, among its targets and sample weights."""

from collections.abc import Callable
from typing import Any

import keras


def with_inputs(batch: Any, change: Callable[[Any], Any], other: Callable[[Any], Any]) -> Any:
    """Changes the leaves of a batch: those of its inputs in one way, the others in another.

    Args:
        batch: `(x,)`, `(x, y)`, `(x, y, sample_weight)` or `x` alone; each may be nested, and None
            stays.
        change: For each leaf of `x`.
        other: For each leaf of the rest.

    Returns:
        The batch in the same structure; a list becomes a tuple, as Keras reads it.

    Example:
        >>> from deepseek_hpf.data.batch_inputs import with_inputs
        >>> with_inputs(({"a": 1, "b": 2}, 3), lambda leaf: -leaf, lambda leaf: leaf)
        ({'a': -1, 'b': -2}, 3)
    """
    if not isinstance(batch, tuple | list):
        return _mapped(change, batch)
    inputs, *rest = batch
    return (_mapped(change, inputs), *(_mapped(other, part) for part in rest))


def _mapped(function: Callable[[Any], Any], structure: Any) -> Any:
    return keras.tree.map_structure(
        lambda leaf: None if leaf is None else function(leaf), structure
    )
