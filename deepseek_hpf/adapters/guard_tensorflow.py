"""Reading and putting back variables on TensorFlow: graph, XLA or eager, on each replica."""

import logging
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

_logger = logging.getLogger(__name__)


def read(variables: list[Any]) -> list[tf.Tensor]:
    """Reads variables now; a later write leaves what was read as it is, in a buffer of its own.

    Args:
        variables: Keras variables.

    Returns:
        Their values, on this replica. Nothing is copied if nothing is written.
    """
    return [_on_this_replica(variable).read_value() for variable in variables]


def write(variables: list[Any], values: list[Any]) -> None:
    """Writes variables on this replica only.

    A write through the distributed variable would meet the other replicas in a `merge_call`, which
    is not allowed under a condition; every replica puts back its own values instead.

    Args:
        variables: Keras variables.
        values: Tensors of their shapes and dtypes.
    """
    for variable, value in zip(variables, values, strict=True):
        _on_this_replica(variable).assign(value)


def when(condition: Any, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """Runs one of two branches, decided on the device.

    Args:
        condition: Scalar bool tensor.
        on_true: Called, or traced, without arguments.
        on_false: The same; returns the same structure of tensors.

    Returns:
        What the branch returned.
    """
    return tf.cond(condition, on_true, on_false)


def build(model: keras.Model, data: Any) -> bool:
    """Builds model, metrics and optimizer before the first step, as Keras does elsewhere.

    TensorFlow builds them inside the first step, where the state before it can no longer be read.

    Args:
        model: A compiled model.
        data: A batch.

    Returns:
        Whether everything is built. Keras's way needs `call` to run on symbolic inputs.
    """
    try:
        model._symbolic_build(data_batch=data)
    except Exception as error:  # noqa: BLE001 - a user's model may raise anything
        _logger.debug("The model is built by its first step instead: %s", error)
        return False
    return True


def scope(model: keras.Model) -> Any:
    """Returns the context in which variables of the model's replicas are made."""
    return model.distribute_strategy.scope()


def buffers(model: keras.Model) -> list[Any]:
    """Returns what the model holds outside of Keras variables and writes when called: nothing."""
    return []


def random_state() -> None:
    """Returns nothing: on TensorFlow Keras draws from seed generators only."""


def set_random_state(states: None) -> None:
    """Does nothing."""


def _on_this_replica(variable: Any) -> tf.Variable:
    value = variable.value
    context = tf.distribute.get_replica_context()
    if context is None or not isinstance(value, tf.distribute.DistributedValues):
        return value
    return context.strategy.experimental_local_results(value)[_replica_index(context)]


def _replica_index(context: tf.distribute.ReplicaContext) -> int:
    replica = tf.get_static_value(context.replica_id_in_sync_group)
    return int(replica) % len(context.strategy.extended.worker_devices)
