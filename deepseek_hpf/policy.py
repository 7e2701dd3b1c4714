"""`MixedPrecisionPolicy`: a Keras dtype policy that knows the hardware and has a configuration."""

import difflib
import functools
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, Self, get_args

import keras

from deepseek_hpf import hardware
from deepseek_hpf.config import PolicyName, PrecisionConfig
from deepseek_hpf.config_like import ConfigLike, as_config
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.scheduling.auto import PolicyChoice, choose_policy

logger = logging.getLogger(__name__)

AUTO = "auto"


@keras.saving.register_keras_serializable(package="deepseek_hpf")
class MixedPrecisionPolicy(keras.DTypePolicy):
    """A Keras dtype policy chosen for the hardware, with the rules and settings that go with it.

    `.name` is always the name of a standard Keras policy, and no layer has to keep an object of
    this class: `scope()` sets the plain policy of that name, and `apply_policy` puts it in the
    place of an instance that was passed as `dtype=` (the documented form is `dtype=policy.name`). A
    saved model thus loads where this package is not installed. `keras.config.set_dtype_policy`, in
    contrast, would hand this very object to every layer.

    Args:
        name: `"auto"` (what `config` says, else what this hardware and back end do best), the name
            of a Keras policy such as `"mixed_bfloat16"`, or None for the global policy of this
            thread.
        config: A `PrecisionConfig`, a dictionary of the same form, or the path of a JSON file;
            None for the defaults. A policy that it sets has to agree with `name`, unless either is
            `"auto"`.

    Raises:
        ConfigError: The name is no policy, or it contradicts the configuration.
        ConfigTypeError: The name is not a string, or the configuration is of another type.

    Example:
        >>> import keras
        >>> import deepseek_hpf as hpf
        >>> policy = hpf.MixedPrecisionPolicy("mixed_bfloat16")
        >>> policy.compute_dtype, policy.variable_dtype
        ('bfloat16', 'float32')
        >>> with policy.scope():
        ...     layer = keras.layers.Dense(1)
        >>> layer.dtype_policy
        <DTypePolicy "mixed_bfloat16">
    """

    def __init__(self, name: str | None = AUTO, *, config: ConfigLike | None = None):
        given = as_config(config)
        asked = _agree(name, given)
        choice = _resolve(asked)
        try:
            super().__init__(choice.name)
        except ValueError as error:
            raise ConfigError(_unknown_name(choice.name)) from error
        mixed = self.compute_dtype != self.variable_dtype
        # Beside Keras's `_name`, because `DTypePolicyMap.get_config` sets that one to None.
        self._standard_name = choice.name if mixed else self.compute_dtype
        self._config = _with_policy(given, asked)
        self._is_auto = asked == AUTO
        self._reason = choice.reason

    @property
    def name(self) -> str:
        """Name of the standard Keras policy that this one stands for, never `"auto"`."""
        return self._standard_name

    @property
    def config(self) -> PrecisionConfig:
        """The configuration; its `policy` is the name that was asked for, `"auto"` included."""
        return self._config

    @property
    def is_auto(self) -> bool:
        """Whether the hardware decided, as opposed to a name in the code or the configuration."""
        return self._is_auto

    @property
    def reason(self) -> str:
        """One sentence saying why this policy: what `"auto"` found, or who named it."""
        return self._reason

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Self:
        """Makes the policy that a JSON configuration file describes.

        Args:
            path: The file; `PrecisionConfig` documents its keys.

        Raises:
            ConfigError: The file cannot be read, or is no valid configuration.
        """
        return cls(config=PrecisionConfig.from_json(path))

    def scope(self) -> "PolicyScope":
        """A context in which this policy's plain Keras policy is the global one.

        It sets dtypes and nothing else, as Keras would: the rules, the kernels and the guards come
        with `callbacks.PrecisionOverrides(policy)` or `apply_policy(model, policy)`. What was the
        global policy before is so again afterwards, also on an exception. Keras's global policy is
        **per thread**: a thread started inside does not see it, and enters the scope itself (any
        number may, at once).

        Returns:
            A re-entrant context manager, also usable as a decorator.
        """
        return PolicyScope(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Makes a policy from `get_config()`, which holds the name only.

        Args:
            config: `{"name": …}`; it is not changed.

        Raises:
            ConfigError: A key other than the arguments of this class.
        """
        if not isinstance(config, Mapping):
            raise ConfigTypeError(
                "Expected the dictionary that `get_config()` returns. "
                f"Received: config={config!r} (of type {type(config)})"
            )
        unknown = sorted(str(key) for key in config if key not in ("name", "config"))
        if unknown:
            raise ConfigError(
                "Expected the keys of `MixedPrecisionPolicy.get_config()`, which are 'name' only. "
                f"Received: config={dict(config)!r}, with {', '.join(unknown)}"
            )
        return cls(**config)

    def __repr__(self) -> str:
        return f'<{type(self).__name__} "{self.name}">'

    def __eq__(self, other: object) -> bool:
        """Whether both do the same; a plain Keras policy is one with default settings."""
        if isinstance(other, MixedPrecisionPolicy):
            return self.name == other.name and self._settings() == other._settings()
        if isinstance(other, keras.DTypePolicy) and type(other) in _PLAIN:
            return self.name == other.name and self._settings() == _DEFAULTS
        return NotImplemented

    def __hash__(self) -> int:
        return hash((MixedPrecisionPolicy, self.name))

    def _settings(self) -> PrecisionConfig:
        """The configuration but for the policy: whether "auto" chose it changes nothing."""
        return _with_policy(self._config, AUTO)


class PolicyScope(ContextDecorator):
    """The context manager of `MixedPrecisionPolicy.scope`; many threads may enter one object.

    Args:
        policy: Whose plain Keras policy becomes the global one of the entering thread.
    """

    def __init__(self, policy: MixedPrecisionPolicy):
        self._policy = policy
        # Each thread has its own stack of what to restore, as Keras's global policy is per thread.
        self._local = threading.local()

    def __enter__(self) -> MixedPrecisionPolicy:
        # What can fail comes first: a scope that was not entered has nothing to restore.
        self._announce()
        plain, before = keras.DTypePolicy(self._policy.name), keras.config.dtype_policy()
        self._stack().append(before)
        keras.config.set_dtype_policy(plain)
        return self._policy

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        keras.config.set_dtype_policy(self._stack().pop())

    def _announce(self) -> None:
        _say_once(
            "A scope alone sets dtypes. Rules, kernels and the guards against corruption come "
            "with `callbacks.PrecisionOverrides(policy)` or with `apply_policy(model, policy)`."
        )
        if self._policy.is_auto:
            _say_once(
                f'Policy "auto" is {self._policy.name}: {self._policy.reason} That is known of the '
                "hardware and not measured on the model: `hpf tune` measures, and what it finds is "
                "what `apply_policy` takes for a model of that structure."
            )

    def _stack(self) -> list[keras.DTypePolicy]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[keras.DTypePolicy] = self._local.stack
        return stack


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)


def _agree(name: object, config: PrecisionConfig) -> str:
    """The name to go by: the argument, or the configuration's where the argument is `"auto"`."""
    if name is None:
        name = keras.config.dtype_policy().name
    if not isinstance(name, str):
        raise ConfigTypeError(
            "'name' must be a string, such as 'mixed_float16', or None for the global policy. "
            f"Received: name={name} (of type {type(name)})"
        )
    if name == AUTO:
        return config.policy
    if config.policy not in (AUTO, name):
        raise ConfigError(
            "Expected `name` and the configuration's `policy` to agree, or one of them to be "
            f"'auto'. Received: name={name!r}, config.policy={config.policy!r}. Leave `name` out, "
            "or take `policy` out of the configuration."
        )
    return name


def _resolve(name: str) -> PolicyChoice:
    if name != AUTO:
        return PolicyChoice(name, f"{name} was asked for by name.")
    backend = keras.backend.backend()
    return choose_policy(hardware.usable_devices(backend), backend)


def _unknown_name(name: str) -> str:
    near = difflib.get_close_matches(name[:50], get_args(PolicyName), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"Cannot convert '{name}' to a mixed precision DTypePolicy. Valid policies include 'auto', "
        "'mixed_bfloat16', 'mixed_float16', and the name of any float dtype such as 'float32'. "
        f"Received: name={name!r}.{hint}"
    )


def _with_policy(config: PrecisionConfig, name: str) -> PrecisionConfig:
    # Keras has more policies than a configuration may name, integer ones among them: nothing
    # trains in those.
    if name == config.policy or name not in get_args(PolicyName):
        return config
    return config.replace(policy=name)


_PLAIN = (keras.DTypePolicy, keras.dtype_policies.FloatDTypePolicy)
_DEFAULTS = PrecisionConfig()
