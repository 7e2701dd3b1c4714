"""Optional packages: what is missing is named with the extra that brings it."""

import importlib
from types import ModuleType

from deepseek_hpf.errors import ConfigError


def import_extra(module_name: str, extra: str) -> ModuleType:
    """Imports a module that an extra of this package brings.

    Args:
        module_name: Absolute name of the module, e.g. `"sklearn.datasets"`.
        extra: Name of the extra, e.g. `"datasets"`.

    Returns:
        The module.

    Raises:
        ConfigError: The module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"This needs the package {error.name!r}, which is not installed: install it with "
            f"`pip install 'deepseek_hpf[{extra}]'`."
        ) from error
