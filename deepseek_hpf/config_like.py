"""What may be given where a configuration is expected."""

import os
from collections.abc import Mapping
from typing import Any

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigTypeError

ConfigLike = PrecisionConfig | Mapping[str, Any] | str | os.PathLike[str]


def as_config(config: ConfigLike | None) -> PrecisionConfig:
    """Returns the configuration that an argument stands for.

    Args:
        config: A configuration, a dictionary of the same form, the path of a JSON file, or None for
            the defaults.

    Raises:
        ConfigError: The file or the dictionary is not valid.
        ConfigTypeError: It is none of these.
    """
    if config is None:
        return PrecisionConfig()
    if isinstance(config, PrecisionConfig):
        return config
    if isinstance(config, Mapping):
        return PrecisionConfig.from_dict(dict(config))
    if isinstance(config, str | os.PathLike):
        return PrecisionConfig.from_json(config)
    raise ConfigTypeError(
        "Expected `config` to be a PrecisionConfig, a dictionary, or the path of a JSON file. "
        f"Received: config={config!r} (of type {type(config)})"
    )
