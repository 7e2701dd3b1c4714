"""Optional packages: what is missing is named with the extra that brings it."""

import importlib
from types import ModuleType
from typing import Any

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


def page_environment(package: str) -> Any:
    """Returns the jinja2 environment of the templates in a package: escaped, and strict.

    Args:
        package: Absolute name of the package whose folder holds the templates.

    Returns:
        A `jinja2.Environment` of its own.

    Raises:
        ConfigError: jinja2, of the extra `report`, is not installed.
    """
    jinja2 = import_extra("jinja2", "report")
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
