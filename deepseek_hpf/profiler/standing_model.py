"""A built model to look at, in place of one that is not built and must stay so."""

from typing import Any

import keras

from deepseek_hpf.errors import ConfigError


def built(model: keras.Model, x: Any, notes: list[str]) -> keras.Model:
    """The model, or a built copy of one that is not built.

    Args:
        model: The model.
        x: Inputs.
        notes: Where to say that it is a copy.

    Returns:
        A built model.

    Raises:
        ConfigError: It cannot be copied, or not be called on the inputs.
    """
    if model.built and all(layer.built for layer in model._flatten_layers(include_self=False)):
        return model
    from deepseek_hpf.profiler.recorded_step import random_states_kept

    with random_states_kept():
        try:
            policy = model.dtype_policy
            copied = type(model).from_config(model.get_config())
            copied.dtype_policy = policy
            copied(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
        except Exception as error:
            raise ConfigError(
                f"Expected a built model, or one that can be copied and built. Received: "
                f"{model.name!r}, of {type(model).__name__}, which cannot ({type(error).__name__}: "
                f"{str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}). "
                "Call it on a batch first."
            ) from error
    if getattr(model, "_compile_loss", None) is not None:
        held = model._compile_loss
        copied.compile(optimizer="sgd", loss=held._user_loss, loss_weights=held._user_loss_weights)
    notes.append("the model was not built: a copy was, with weights of its own")
    return copied
