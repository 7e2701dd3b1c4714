"""Keras on JAX, over several processes."""

from typing import Any

import jax
import keras

from deepseek_hpf.distributed.group import Alone, Group
from deepseek_hpf.distributed.group_jax import JaxGroup
from deepseek_hpf.errors import PrecisionError


def group_of(model: keras.Model) -> Group:
    """Returns the processes that train a model with `fit`.

    Args:
        model: The model.

    Raises:
        PrecisionError: Each of several processes would train a model of its own.
    """
    if jax.process_count() == 1:
        return Alone()
    if keras.distribution.distribution() is None:
        raise PrecisionError(
            f"Expected a distribution over the {jax.process_count()} processes. Received: none, so "
            "that each process would train a model of its own. Call "
            "`keras.distribution.set_distribution(keras.distribution.DataParallel("
            "auto_shard_dataset=False))` before the model is made, and give each process its own "
            "part of the data."
        )
    return JaxGroup()


def versions() -> dict[str, Any]:
    """Returns what has to be the same on all processes for their programs to be."""
    return {"jax": jax.__version__}
