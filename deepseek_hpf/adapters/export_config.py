"""What a copy is made from: the policy of each layer, the masters of the weights."""

from typing import Any

import keras

from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.layer_dtype import reason_to_leave

PLAIN_POLICY = "DTypePolicy"


def config_in(model: keras.Model, dtype: str | None) -> dict[str, Any]:
    """The configuration of a model, each layer in its own policy or all in one.

    Args:
        model: The model.
        dtype: Name of the policy; None keeps what each layer has.

    Returns:
        What `from_config` takes; the model's own configuration is not changed.
    """
    if dtype is not None:
        return dict(_replaced(model.get_config(), dtype))
    cast = Applied.to(model).layers_with_cast_results()
    policies = [(layer, layer.dtype_policy) for layer in cast]
    try:
        for layer, policy in policies:
            if policy.variable_dtype == "float32":
                layer.dtype_policy = keras.DTypePolicy("float32")
        return dict(model.get_config())
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def with_dtype(model: keras.Model, dtype: str) -> None:
    """Sets what the configuration of a functional model does not hold: its own policy.

    Args:
        model: The copy.
        dtype: Name of the policy.
    """
    if reason_to_leave(model) is None:
        model.dtype_policy = keras.DTypePolicy(dtype)


def masters_of(model: keras.Model) -> dict[int, Any]:
    """The float32 masters that the optimizer keeps of low-precision variables.

    Args:
        model: The model.

    Returns:
        `id(variable)` to its master.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    if not getattr(optimizer, "master_weights", False) or not optimizer.built:
        return {}
    pairs = [(v, optimizer.target(v)) for v in model.trainable_variables]
    return {id(variable): master for variable, master in pairs if master is not variable}


def _replaced(config: Any, dtype: str) -> Any:
    """Puts one policy in the place of every plain one in a nested configuration."""
    if isinstance(config, list | tuple):
        return type(config)(_replaced(item, dtype) for item in config)
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == PLAIN_POLICY and "config" in config:
        return _policy_config(config, dtype)
    return {key: _replaced(value, dtype) for key, value in config.items()}


def _policy_config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    present = keras.DTypePolicy(config["config"]["name"])
    if not keras.backend.is_float_dtype(present.compute_dtype):
        return config
    return {**config, "config": {**config["config"], "name": dtype}}
