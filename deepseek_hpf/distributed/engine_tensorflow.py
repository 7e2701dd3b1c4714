"""Keras on TensorFlow, over several processes: refused, for Keras 3 cannot do it."""

from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.distributed.group import Alone, Group
from deepseek_hpf.errors import PrecisionError


def group_of(model: keras.Model) -> Group:
    """Returns the processes that train a model with `fit`: this one.

    The replicas of `tf.distribute.MirroredStrategy` are threads of one process.

    Args:
        model: The model.

    Raises:
        PrecisionError: It was made under a strategy of several workers.
    """
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise PrecisionError(
            "Expected one process, or Keras on JAX. Received: a model under "
            "MultiWorkerMirroredStrategy, with which `fit` of Keras 3 does not work. For several "
            "machines set KERAS_BACKEND=jax, call `jax.distributed.initialize()` and "
            "`keras.distribution.set_distribution(keras.distribution.DataParallel("
            "auto_shard_dataset=False))`: see examples/distributed/keras_jax.py. For several "
            "devices of one machine take `tf.distribute.MirroredStrategy`."
        )
    return Alone()


def versions() -> dict[str, Any]:
    """Returns what has to be the same on all processes."""
    return {"tensorflow": tf.__version__}
