"""A model that another process can make: a factory, or the model's configuration."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import keras

from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.errors import ConfigError, ConfigTypeError

_WAY_OUT = (
    "Give a function of a module that makes and compiles the model, e.g. "
    "`find_batch_size(my_models.create_model)`."
)


@dataclass(frozen=True)
class ModelSource:
    """What makes a compiled model, picklable.

    Args:
        factory: Returns it; None where the configuration makes it.
        config: Of `keras.saving.serialize_keras_object`, compilation included; None with a factory.
        names: The classes and functions in the configuration that are not Keras's.
    """

    factory: Callable[[], Any] | None
    config: Mapping[str, Any] | None = None
    names: Mapping[str, Any] | None = None

    def make(self) -> keras.Model:
        """Makes the model, with weights of its own.

        Returns:
            The model.

        Raises:
            ConfigError: It cannot be made, or comes out not compiled.
        """
        model = self.factory() if self.factory is not None else self._from_config()
        if not isinstance(model, keras.Model) or not model.compiled or model.optimizer is None:
            raise ConfigError(
                "Expected a factory that returns a compiled Keras model, with an optimizer and a "
                f"loss. Received: {model!r}. Call `model.compile(…)` in the factory."
            )
        return model

    def _from_config(self) -> Any:
        try:
            return keras.saving.deserialize_keras_object(
                dict(self.config or {}), custom_objects=dict(self.names or {}), safe_mode=False
            )
        except Exception as error:
            raise ConfigError(
                "The model cannot be made anew from its configuration: "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]} {_WAY_OUT}"
            ) from error


def source_of(model: keras.Model | Callable[[], Any]) -> ModelSource:
    """Makes a source of a model, which is only read, or of a factory.

    Args:
        model: A compiled model without a policy applied to it, or a function that returns one.

    Returns:
        The source.

    Raises:
        ConfigError: It cannot travel to another process, is not compiled, or has a policy applied.
        ConfigTypeError: It is neither.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> source_of(model).make().count_params()
        5
    """
    if isinstance(model, keras.Model):
        source = _source_of_object(model)
    elif callable(model):
        source = ModelSource(model)
    else:
        raise ConfigTypeError(
            "Expected a Keras model, or a function that returns one. "
            f"Received: {model!r} (of type {type(model)})"
        )
    try:
        pickle.dumps(source)
    except Exception as error:
        raise ConfigError(
            "Expected what another process can import: a function of a module, and layers, losses "
            f"and metrics of modules. Received: {model!r}, for which pickle says: "
            f"{' '.join(str(error).split())[:200]} {_WAY_OUT}"
        ) from error
    return source


def _source_of_object(model: keras.Model) -> ModelSource:
    if not model.compiled or model.optimizer is None:
        raise ConfigError(
            f"Expected a compiled model. Received: {model.name!r}, which is not: call "
            "`model.compile(…)` first."
        )
    if Applied.is_applied(model):
        raise ConfigError(
            "Expected a model as Keras made it. Received one that a policy is applied to: take it "
            "back with `.revert()` on the report of `apply_policy`."
        )
    try:
        config = keras.saving.serialize_keras_object(model)
    except Exception as error:
        raise ConfigError(
            f"Expected a model that Keras can serialize. Received: {model.name!r}, of "
            f"{type(model).__name__}: {' '.join(str(error).split())[:200]} {_WAY_OUT}"
        ) from error
    return ModelSource(None, config, _names_in(model))


def _names_in(model: keras.Model) -> dict[str, Any]:
    """What Keras cannot find by name alone: classes and functions of the user's."""
    compiled = dict(model._compile_config.config)
    parts = keras.tree.flatten([compiled.get(key) for key in ("loss", "metrics", "optimizer")])
    found: list[Any] = [type(walked.layer) for walked in walk(model)] + [type(model)]
    found += [part if isinstance(part, FunctionType) else type(part) for part in parts]
    own = (each for each in found if not each.__module__.startswith(("keras.", "builtins")))
    return {each.__name__: each for each in own}
