"""Random bits from a counter: the same on every replica, every back end and every resumed run."""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

Tensor = Any


def noise(shape: Sequence[int], seed: Tensor, counter: Tensor, stream: int) -> Tensor:
    """Draws 16 random bits for each element.

    An integer hash of seed, counter, stream and place; each multiplication and shift can be
    undone, so that no two places of one draw share a hash.

    Args:
        shape: Of the result.
        seed: int32 scalar.
        counter: int32 scalar; another for each draw.
        stream: Another for each variable.

    Returns:
        int32 tensor, uniform from 0 to 65,535.
    """
    first = _mixed(ops.add(_mixed(ops.add(_mixed(seed), counter)), stream))
    second = _mixed(first)
    place = ops.arange(math.prod(shape), dtype="int32")
    hashed = _halfway(ops.bitwise_xor(place, first))
    # A second key, lest the bits of one draw are those of another a few places on.
    hashed = _rest(ops.add(hashed, second))
    return ops.reshape(ops.bitwise_and(_shifted(hashed, 16), 0xFFFF), shape)


def _mixed(value: Tensor) -> Tensor:
    return _rest(_halfway(ops.add(ops.cast(value, "int32"), 0x1E3779B9)))


def _halfway(x: Tensor) -> Tensor:
    return ops.multiply(ops.bitwise_xor(x, _shifted(x, 16)), 0x7FEB352D)


def _rest(x: Tensor) -> Tensor:
    x = ops.multiply(ops.bitwise_xor(x, _shifted(x, 15)), 0x846CA68B - 2**32)
    return ops.bitwise_xor(x, _shifted(x, 16))


def _shifted(x: Tensor, places: int) -> Tensor:
    """Shifts to the right; zeros come in, whatever the sign."""
    return ops.bitwise_and(ops.right_shift(x, places), (1 << (32 - places)) - 1)
