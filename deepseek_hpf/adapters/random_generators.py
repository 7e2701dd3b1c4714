"""The global generators of Python, NumPy and PyTorch, kept as they are."""

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """The global generators are afterwards as they were, whatever is drawn within.

    Keras's own seed generators are variables of the model: see `adjoining_step.values_restored`.

    Yields:
        Nothing.

    Example:
        >>> import random
        >>> from deepseek_hpf.adapters.random_generators import random_states_kept
        >>> with random_states_kept():
        ...     within = random.random()
        >>> random.random() == within
        True
    """
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
    ]
    if "torch" in sys.modules:
        from deepseek_hpf.adapters import guard_torch

        states.append((guard_torch.set_random_state, guard_torch.random_state()))
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)
