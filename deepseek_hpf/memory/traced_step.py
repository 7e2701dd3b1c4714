"""What a back end tells of a training step that it has traced and not run."""

import importlib
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True)
class TracedStep:
    """Bytes of one training step, beyond weights, optimizer and batch.

    Args:
        kept: What the forward pass keeps for the backward pass, weights left out; None where that
            is not told.
        temporary: The most that is alive at once, what is kept and the gradients included.
        origin: Where the figures come from, in a sentence.
        notes: What else has to be said.
    """

    kept: int | None
    temporary: int
    origin: str
    notes: tuple[str, ...] = ()


def trace(model: keras.Model, batch: Any) -> TracedStep:
    """Traces a training step on the back end at hand; nothing is computed.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: `(x, y)` or `(x, y, sample_weight)` of NumPy arrays, of which only shapes and dtypes
            count.

    Returns:
        The step's figures.
    """
    name = f"deepseek_hpf.memory.traced_step_{keras.backend.backend()}"
    traced: TracedStep = importlib.import_module(name).trace(model, batch)
    return traced
