"""Checks of what `LossScaleOptimizer` is given."""

from typing import Any

import keras
import numpy as np

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers.clipping_rule import Clipping


def checked_inner_optimizer(identifier: Any) -> keras.optimizers.Optimizer:
    """Returns the inner optimizer of an instance, a name or a config.

    Raises:
        ConfigError: It scales the loss itself.
    """
    inner = keras.optimizers.get(identifier)
    if isinstance(inner, keras.optimizers.LossScaleOptimizer):
        raise ConfigError(
            "Argument `inner_optimizer` must not scale the loss itself. Pass its own inner "
            "optimizer, or use `wrap_optimizer`, which carries over its state. Received: "
            f"inner_optimizer={inner!r} (of type {type(inner).__name__})"
        )
    return inner


def refuse_clipping_twice(inner: keras.optimizers.Optimizer, rule: Clipping | None) -> None:
    """Refuses a clipping rule on the wrapper if the inner optimizer clips as well.

    Raises:
        ConfigError: Both clip.
    """
    names = ("clipnorm", "global_clipnorm", "clipvalue")
    given = [name for name in names if getattr(inner, name, None) is not None]
    if rule is not None and given:
        raise ConfigError(
            "The gradient would be clipped twice: by the wrapper and by its inner optimizer. Leave "
            f"one of them out. Received: clipping={rule!r} and, on the `inner_optimizer`, "
            f"{given[0]}={getattr(inner, given[0])!r}"
        )


def python_number(value: Any) -> Any:
    """Returns a NumPy scalar as the Python number that validation expects; else the value."""
    return value.item() if isinstance(value, np.generic) else value
