"""Lazy package roots (PEP 562), and the one place where a missing back end is explained."""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType

from deepseek_hpf.errors import ConfigError, MissingBackendError

BACKENDS = ("tensorflow", "jax", "torch")

LazyRoot = tuple[Callable[[str], object], Callable[[], list[str]], list[str]]


def lazy_exports(package: str, exports: Mapping[str, str]) -> LazyRoot:
    """Returns `__getattr__`, `__dir__` and `__all__` for a package root that imports on first use.

    Args:
        package: Name of the package, its `__name__`.
        exports: Public name to `"module:attribute"`, or to `"module"` for a sub-module.

    Returns:
        The three module-level names, in the order above.
    """

    def __getattr__(name: str) -> object:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module_name, _, attribute = exports[name].partition(":")
        module = import_with_backend(module_name)
        value = getattr(module, attribute) if attribute else module
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return __getattr__, __dir__, sorted(exports)


def import_with_backend(module_name: str) -> ModuleType:
    """Imports a module that may need Keras; says which extra to install if no back end is there.

    Args:
        module_name: Absolute name of the module.

    Returns:
        The module.

    Raises:
        MissingBackendError: The framework that Keras is set to is not installed.
        ConfigError: Keras is set to a back end that it does not know.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name in (*BACKENDS, "openvino"):  # Keras has that one too; it does not train
            raise MissingBackendError(error.name) from error
        raise
    except ValueError as error:
        wording, _, name = str(error).partition(" : ")
        if wording != "Unable to import backend":  # Keras's
            raise
        raise ConfigError(
            'Expected the environment variable KERAS_BACKEND to be "tensorflow", "jax" or "torch". '
            f"Received: {name!r}, from it or from ~/.keras/keras.json."
        ) from error
