"""What a step that trains nothing may still write, put back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from deepseek_hpf.adapters.forward_state import carried_states, forward_state, metric_state


@contextmanager
def restored(model: keras.Model, guard: Any) -> Iterator[None]:
    """The model's variables are afterwards as they were, and so are PyTorch's buffers.

    Slots are left out, for which a copy would take twice the memory of the weights: what writes
    them, applying gradients, has to be kept from doing so.

    Args:
        model: The model, built.
        guard: The module that reads and writes variables on the back end.
    """
    optimizer = model.optimizer
    scalars = [v for v in optimizer.variables if not v.shape] if optimizer is not None else []
    listed = [
        *model.variables,
        *forward_state(model),
        *carried_states(model),
        *metric_state(model),
        *scalars,
        *guard.buffers(model),
    ]
    state = list({id(variable): variable for variable in listed}.values())
    before = guard.read(state)
    try:
        yield
    finally:
        guard.write(state, before)
