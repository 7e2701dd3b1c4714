"""Noise for stochastic rounding that needs no generator: hashes of what is rounded.

A value in group g at place p is rounded with ((table[p] + offset[g]) mod 2^16 + 1/2) / 2^16. Both
terms are hashes, so any two of these numbers are independent, and the error of a sum has the
variance that it has with independent noise, at one random number for each group instead of one for
each value. The offset hashes the group's own bounds: there is no state to carry from step to step,
to checkpoint, or to replay when a step is repeated.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

GROUP = 256  # values that share a lower bound and a step
NOISE_LEVELS = 2**16
_GOLDEN = -1640531527  # 2^32 / golden ratio, as int32

Shift = Callable[[Any, int], Any]


def mix(value: Any, shift: Shift) -> Any:
    """A hash of 32 bits in which every bit of the input changes half of the output.

    Args:
        value: int32 array of any framework.
        shift: Shifts such an array to the right and fills with zeros.

    Returns:
        int32 array.

    References:
        https://github.com/skeeto/hash-prospector (lowbias32)
    """
    value = (value ^ shift(value, 16)) * 0x7FEB352D
    value = (value ^ shift(value, 15)) * -2073254261
    return value ^ shift(value, 16)


def table(seed: int) -> np.ndarray:
    """The noise by place within a group.

    Args:
        seed: Any integer.

    Returns:
        int32 array of `GROUP` numbers.

    Example:
        >>> from deepseek_hpf.storage.noise import table
        >>> table(0).shape, bool((table(0) == table(1)).all())
        ((256,), False)
    """
    return mix(np.arange(GROUP, dtype=np.int32) * _GOLDEN + _salt(seed), _shift_numpy)


def offset(low: Any, high: Any, index: Any, seed: int, shift: Shift) -> Any:
    """The noise by group.

    Args:
        low: Bits of the groups' lower bounds, int32.
        high: Bits of the upper bounds, int32.
        index: Numbers of the groups, int32.
        seed: Any integer.
        shift: As of `mix`.

    Returns:
        int32 array, one number a group.
    """
    return mix(mix(mix(low + int(_salt(~seed)), shift) ^ high, shift) ^ index, shift)


def _salt(seed: int) -> np.int32:
    words = np.frombuffer((seed % 2**64).to_bytes(8, "little"), np.int32)
    return mix(mix(words[:1], _shift_numpy) ^ words[1:], _shift_numpy)[0]


def _shift_numpy(value: np.ndarray, bits: int) -> np.ndarray:
    return (value.view(np.uint32) >> np.uint32(bits)).view(np.int32)
