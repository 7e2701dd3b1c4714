"""TensorFlow counts what it holds on a GPU, and nothing on a CPU."""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.memory.meter import Meter, NotTold, Step

_DEVICE = "GPU:0"


class GpuMeter:
    """Counts on the first GPU, from what is held when it is made."""

    def __init__(self) -> None:
        self._held = tf.config.experimental.get_memory_info(_DEVICE)["current"]

    def peak(self, model: keras.Model, batch: Any, step: Step) -> int | None:
        """Returns the peak of a step, less what was held before the model was made."""
        tf.config.experimental.reset_memory_stats(_DEVICE)
        step()
        return int(tf.config.experimental.get_memory_info(_DEVICE)["peak"] - self._held)


def meter() -> Meter:
    """Returns a meter, one that tells nothing where there is no GPU."""
    return GpuMeter() if tf.config.list_physical_devices("GPU") else NotTold()
