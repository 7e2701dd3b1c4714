"""Layers of Keras under TensorFlow that compute anew what their backward passes need."""

import functools
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.storage.repeatable_call import RepeatableCall
from deepseek_hpf.storage.stored_call import Call, Settings


def refusal(layer: keras.Layer, storage: str) -> str | None:
    """Why a layer keeps what it keeps.

    Args:
        layer: Any layer, built.
        storage: `"recompute"`.

    Returns:
        None: any call can be run again.
    """
    return None


def wrap(layer: keras.Layer, call: Call, settings: Settings) -> Call:
    """The call of a layer, run again in the backward pass.

    Args:
        layer: The layer.
        call: Its present `call`.
        settings: How.

    Returns:
        The wrapper.
    """

    @functools.wraps(call)
    def recomputing_call(*args: Any, **kwargs: Any) -> Any:
        if backend.in_symbolic_scope():
            return call(*args, **kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        # Gradients go to what is passed; what is no number stays with the function.
        places = [place for place, leaf in enumerate(leaves) if _is_number(leaf)]
        if not places:
            return call(*args, **kwargs)
        repeatable = RepeatableCall(layer, call)
        left: dict[str, list[Any]] = {}

        def run(*numbers: Any) -> Any:
            inner = list(leaves)
            for place, number in zip(places, numbers, strict=True):
                inner[place] = number
                backend.set_keras_mask(number, backend.get_keras_mask(leaves[place]))
            inner_args, inner_kwargs = keras.tree.pack_sequence_as((args, kwargs), inner)
            result, losses = repeatable.with_losses(*inner_args, **inner_kwargs)
            left["masks"] = [backend.get_keras_mask(leaf) for leaf in keras.tree.flatten(result)]
            left["owners"] = [owner for owner, _ in losses]
            return result, [loss for _, loss in losses]

        # A loss that is added inside would have no gradient.
        result, losses = tf.recompute_grad(run)(*(leaves[place] for place in places))
        for owner, loss in zip(left["owners"], losses, strict=True):
            owner.add_loss(loss)
        for leaf, mask in zip(keras.tree.flatten(result), left["masks"], strict=True):
            if mask is not None:
                backend.set_keras_mask(leaf, mask)
        return result

    return recomputing_call


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, tf.Tensor) and (leaf.dtype.is_floating or leaf.dtype.is_integer)
