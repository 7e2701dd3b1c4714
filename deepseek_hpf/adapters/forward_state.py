"""Which variables a forward pass in training writes: what a skipped step has to put back."""

from typing import Any

import keras

Variable = Any


def forward_state(model: keras.Model) -> list[Variable]:
    """Lists the variables that the forward pass of a training step may write, each once.

    They are what layers were given as state from the start: moving statistics, states of stateful
    RNNs, counters, and the states of seed generators. A weight that was made trainable and then
    frozen (`layer.trainable = False`) is no state: nothing writes it, and a backbone of a gigabyte
    must not be copied at every step. Nor are the moving statistics of a frozen
    `BatchNormalization`, which runs in inference mode. Metrics are listed by `metric_state`.

    Args:
        model: A model or layer, built. Of what is not built yet nothing is listed.

    Returns:
        Keras variables, in the order of the layers.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        >>> [variable.name for variable in forward_state(model)]
        ['moving_mean', 'moving_variance']
        >>> model.trainable = False
        >>> forward_state(model)
        []
    """
    state: dict[int, Variable] = {}
    for layer in model._flatten_layers():
        for variable in _own_state(layer):
            state[id(variable)] = variable
    return list(state.values())


def metric_state(model: keras.Model) -> list[Variable]:
    """Lists the variables of all metrics that `fit` resets and logs, the loss tracker's included.

    Args:
        model: A compiled model.

    Returns:
        Keras variables, in the order of `model.metrics`, which is that of JAX's training state.
    """
    return [variable for metric in model.metrics for variable in metric.variables]


def carried_states(model: keras.Model) -> list[Variable]:
    """Lists what stateful RNNs carry from batch to batch: it is in none of Keras's lists.

    Args:
        model: A model or layer, built.

    Returns:
        Keras variables, in the order of the layers.
    """
    return [state for layer in model._flatten_layers() for state in _carried_states(layer)]


def _own_state(layer: keras.Layer) -> list[Variable]:
    seeds = [generator.state for generator in layer._seed_generators]
    if _reads_its_statistics_only(layer):
        return seeds
    return [*layer._non_trainable_variables, *_carried_states(layer), *seeds]


def _carried_states(layer: keras.Layer) -> list[Variable]:
    # What a stateful RNN carries from batch to batch is in none of Keras's lists of variables.
    if not isinstance(layer, keras.layers.RNN):
        return []
    values = keras.tree.flatten(layer.states)
    return [value for value in values if isinstance(value, keras.Variable)]


def _reads_its_statistics_only(layer: keras.Layer) -> bool:
    # The class itself, not its heirs: what a subclass does when frozen is not known.
    return type(layer) is keras.layers.BatchNormalization and not layer.trainable
