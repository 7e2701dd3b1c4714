"""One contender's model: from the factory, under its policy, from the same seed, of its own."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.utils import naming

from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError

MakeModel = Callable[[], Any]
_SEED = 0
_NAMES = "object_name_uids"


def build_under(policy: str, make_model: MakeModel) -> keras.Model:
    """Calls a factory under a Keras policy, as a user of Keras would.

    Every model starts from the same seed, and its layers are named as in a fresh process, so that a
    configuration found for one fits the next.

    Args:
        policy: Name of a standard policy.
        make_model: Returns a compiled model.

    Returns:
        The model.

    Raises:
        ConfigError: What it returns is no compiled model, or it sets the global policy itself.

    Example:
        >>> def make_model():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> [build_under("mixed_bfloat16", make_model).layers[0].path for _ in range(2)]
        ['sequential/dense', 'sequential/dense']
    """
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(_SEED)
        with fresh_names():
            model = make_model()
        found = keras.config.dtype_policy().name
    finally:
        keras.config.set_dtype_policy(before)
    if found != policy:
        raise ConfigError(
            "Expected a factory that leaves Keras's global dtype policy alone: the benchmark sets "
            f"it, to compare policies. Received one that sets it to {shown(found)}."
        )
    if not isinstance(model, keras.Model) or not model.compiled or model.optimizer is None:
        raise ConfigError(
            "Expected a factory that returns a compiled model, with an optimizer and a loss. "
            f"Received: {shown(model)}. Call `model.compile(…)` in the factory."
        )
    return model


@contextlib.contextmanager
def fresh_names() -> Iterator[None]:
    """Within, Keras counts the names of layers from the beginning, as in a fresh process."""
    before = global_state.get_global_attribute(_NAMES)
    naming.reset_uids()
    try:
        yield
    finally:
        global_state.set_global_attribute(_NAMES, before)
