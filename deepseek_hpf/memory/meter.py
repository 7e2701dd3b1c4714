"""The peak memory of a training step, where the platform tells."""

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import keras

Step = Callable[[], None]


class Meter(Protocol):
    """Made before a model is, it knows what others hold."""

    def peak(self, model: keras.Model, batch: Any, step: Step) -> int | None:
        """Runs a step and returns its peak.

        Args:
            model: Whose step it is; it has run before.
            batch: What it trains on.
            step: Trains once.

        Returns:
            Bytes, weights and optimizer included; None where the platform does not tell.
        """


class NotTold:
    """A platform that does not tell: nothing is run."""

    def peak(self, model: keras.Model, batch: Any, step: Step) -> int | None:
        """Returns None."""
        return None


def meter() -> Meter:
    """Returns a meter for the back end and device at hand."""
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        return NotTold()
    made: Meter = importlib.import_module(f"deepseek_hpf.memory.meter_{backend}").meter()
    return made
