"""`MODULE:FUNCTION` arguments: a user's model factory, from the current directory or a package."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from deepseek_hpf.config_wording import nearest_hint, shown
from deepseek_hpf.errors import ConfigError, MissingBackendError
from deepseek_hpf.lazy import import_with_backend
from deepseek_hpf.profiler.entry import is_plain_module


def load_factory(target: str) -> Callable[..., Any]:
    """Imports a function that the user has named. The current directory can be imported from.

    Args:
        target: `"package.module:function"`; `"module:Class.method"` works too.

    Returns:
        The function, or whatever can be called by that name.

    Raises:
        ConfigError: The form is wrong, there is no such module or function, the module fails to
            import, or what is there cannot be called.
    """
    module_name, _, attribute = target.partition(":")
    hint = ""
    if module_name.endswith(".py") and os.path.exists(module_name):
        hint = f' Did you mean "{module_name[:-3].replace(os.sep, ".")}:{attribute}"?'
    words = module_name.split(".")
    if hint or not attribute or not all(word.isidentifier() for word in words):
        raise ConfigError(
            "expected MODULE:FUNCTION, e.g. my_models:create_model. "
            f"Received: {shown(target)}.{hint}"
        )
    found: Any = _import(module_name)
    for word in attribute.split("."):
        found = _attribute(found, word, target)
    if not callable(found):
        raise ConfigError(f"{target}: expected a function. Received: {shown(found)}.")
    return found


def load_model(target: str) -> Any:
    """Calls a factory that the user has named.

    Args:
        target: As for `load_factory`; the function takes no arguments and returns a Keras model.

    Returns:
        The `keras.Model`.

    Raises:
        ConfigError: As `load_factory`; or the factory needs arguments, raises, or returns something
            else.
        MissingBackendError: The framework that Keras is set to is not installed.
    """
    keras = _keras()
    model = _called(target)
    if not isinstance(model, keras.Model):
        hint = " Give its loss with --criterion." if is_plain_module(model) else ""
        raise ConfigError(
            f"{target}: expected it to return a keras.Model. Received: {shown(model)}.{hint}"
        )
    return model


def load_module(target: str) -> Any:
    """Calls a factory of a plain PyTorch module.

    Args:
        target: As for `load_factory`; the function takes no arguments and returns the module.

    Returns:
        The `torch.nn.Module`.

    Raises:
        ConfigError: As `load_model`.
    """
    module = _called(target)
    if not is_plain_module(module):
        raise ConfigError(
            f"{target}: expected it to return a torch.nn.Module. Received: {shown(module)}."
        )
    return module


def _called(target: str) -> Any:
    factory = load_factory(target)
    _refuse_arguments(factory, target)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{target}() raised {_one_line(error)}") from error


def _keras() -> ModuleType:
    """Keras, or why it cannot be imported: a back end that is missing, or that it does not know."""
    try:
        return import_with_backend("keras")
    except (ConfigError, MissingBackendError):
        raise
    except Exception as error:
        raise ConfigError(f"importing keras raised {_one_line(error)}") from error


def _import(module_name: str) -> ModuleType:
    """Imports a module; tells "not there" from "there, but broken"."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"no module named {error.name!r} in {here} or among the installed packages."
            ) from error
        raise ConfigError(f"importing {module_name} raised {_one_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"importing {module_name} raised {_one_line(error)}") from error


def _attribute(owner: Any, name: str, target: str) -> Any:
    """`owner.name`, or an error that names the nearest function there."""
    try:
        return getattr(owner, name)
    except AttributeError:
        there = getattr(owner, "__dict__", {})
        functions = [n for n, v in there.items() if callable(v) and not n.startswith("_")]
        where = getattr(owner, "__name__", type(owner).__name__)
        hint = nearest_hint(name, functions)
        raise ConfigError(f"{target}: {where} has no attribute {shown(name)}.{hint}") from None


def _refuse_arguments(factory: Callable[..., Any], target: str) -> None:
    """The factory is called without arguments; those it cannot do without are named."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have none; the call will tell
        return
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if needed:
        raise ConfigError(
            f"{target}: expected a function that needs no arguments. "
            f"Received one that needs: {', '.join(needed)}. Wrap it in one that gives them."
        )


def _one_line(error: BaseException) -> str:
    """Type and message of an exception on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}…"
    place = _place(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{place}"


def _place(error: BaseException) -> str:
    """The line of the user's code that raised, if a traceback tells."""
    if isinstance(error, SyntaxError):  # its message has the line
        return ""
    step = error.__traceback__
    found = ""
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if name.startswith(os.getcwd() + os.sep):
            found = f" ({os.path.relpath(name)}, line {step.tb_lineno})"
        step = step.tb_next
    return found
