"""Keras on PyTorch: `fit` trains in one process."""

from typing import Any

import keras
import torch
import torch.distributed as dist

from deepseek_hpf.distributed.group import Alone, Group
from deepseek_hpf.errors import PrecisionError


def group_of(model: keras.Model) -> Group:
    """Returns the processes that train a model with `fit`: this one.

    Args:
        model: The model.

    Raises:
        PrecisionError: Each of several processes would train a model of its own.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise PrecisionError(
            f"Expected one process. Received: `fit` of Keras on PyTorch in {dist.get_world_size()} "
            "processes, each of which would train a model of its own: Keras does not reduce their "
            "gradients. Take a loop of your own with `DistributedDataParallel`, "
            "`HybridPrecisionContext` and `deepseek_hpf.distributed.coordinate`, or Keras on JAX: "
            "see examples/distributed."
        )
    return Alone()


def versions() -> dict[str, Any]:
    """Returns what has to be the same on all processes."""
    return {"torch": torch.__version__}
