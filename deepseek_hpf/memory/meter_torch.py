"""PyTorch counts what it holds on a GPU (NVIDIA's or AMD's), and nothing on a CPU."""

from typing import Any

import keras
import torch

from deepseek_hpf.memory.meter import Meter, NotTold, Step


class GpuMeter:
    """Counts on the current GPU, from what is held when it is made."""

    def __init__(self) -> None:
        self._held = torch.cuda.memory_allocated()

    def peak(self, model: keras.Model, batch: Any, step: Step) -> int | None:
        """Returns the peak of a step, less what was held before the model was made."""
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - self._held)


def meter() -> Meter:
    """Returns a meter, one that tells nothing where there is no GPU."""
    return GpuMeter() if torch.cuda.is_available() else NotTold()
