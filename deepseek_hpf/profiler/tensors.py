"""What a tensor of any framework says of itself; no framework is imported for it."""

import math
from typing import Any


def is_float(value: Any) -> bool:
    """Whether a value is a tensor of a floating-point dtype.

    Args:
        value: Anything.

    Returns:
        True for tensors and NumPy arrays of float dtype.
    """
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return False
    return "float" in dtype_of(value)


def dtype_of(value: Any) -> str:
    """Name of a tensor's dtype, the same for all frameworks.

    Args:
        value: A tensor or array.

    Returns:
        The name, e.g. `"bfloat16"`.
    """
    name = getattr(value.dtype, "name", None)
    return name if isinstance(name, str) else str(value.dtype).removeprefix("torch.")


def size_of(value: Any) -> int:
    """Number of elements of a tensor whose shape is known.

    Args:
        value: A tensor or array.

    Returns:
        The number; 0 if a dimension is unknown.
    """
    return math.prod(int(d or 0) for d in value.shape)
