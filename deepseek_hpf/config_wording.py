"""What is wrong with a configuration, in words: where, what was expected, what was received."""

import difflib
import json
import math
import re
import reprlib
import types
from collections.abc import Iterable, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

SHOWN_PROBLEMS = 3

# By the first word of pydantic's error type.
_KINDS = {
    "string": "a string",
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "finite": "a finite number",
    "tuple": "a list",
    "model": "an object",
}
_BOUNDS = {
    "string_unicode": "Unicode text",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "string_too_short": "at least {min_length} character",
    "string_too_long": "at most {max_length:,} characters",
    "too_long": "at most {max_length:,} entries",
}


def expects(expected: str, **context: object) -> PydanticCustomError:
    """What a validator of ours raises.

    Args:
        expected: What the value should have been, in words.
        **context: From a validator of whole sections `key` and `received`, if one key is at
            fault, and otherwise `whole=True`: the words then say what was received.

    Returns:
        The error, which `describe` puts in a line.
    """
    return PydanticCustomError("expects", "{expected}", {"expected": expected, **context})


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Puts pydantic's errors in our words: one line each, three lines at most.

    Args:
        error: What pydantic raised.
        model: The model that was being made.

    Returns:
        The text for a `ConfigError`.
    """
    lines = [_describe_one(details, model) for details in error.errors(include_url=False)]
    if len(lines) > SHOWN_PROBLEMS:
        hidden = len(lines) - SHOWN_PROBLEMS + 1
        lines = [*lines[: SHOWN_PROBLEMS - 1], f"… and {hidden} more problems."]
    return "\n".join(lines)


def problem(path: str, expected: str, received: object, nearest: str = "") -> str:
    """One line: where, what was expected, what was received, and the nearest valid word.

    Args:
        path: Key path, `"rules[2].policy"`; empty for the top.
        expected: In words.
        received: The value.
        nearest: What `nearest_hint` gave.

    Returns:
        The line.
    """
    key = path.rpartition(".")[2]
    value = f"{key}={shown(received)}" if key else shown(received)
    return f"{_where(path)}expected {expected}. Received: {value}.{nearest}"


def nearest_hint(word: object, known: Iterable[str]) -> str:
    """A question that names the nearest known word, or nothing.

    Args:
        word: What was received.
        known: The valid words.

    Returns:
        `' Did you mean "…"?'` with its leading space, or an empty string.
    """
    if not isinstance(word, str):
        return ""
    folded = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word[:64].casefold(), folded, n=1, cutoff=0.5)
    return f' Did you mean "{folded[near[0]]}"?' if near else ""


def join(path: str, key: object) -> str:
    """Appends a key to a key path; keys that are not plain words are quoted.

    Args:
        path: The path so far.
        key: The key, or an index.

    Returns:
        `"path.key"`, `"path[3]"` or `'path["odd key"]'`.
    """
    if isinstance(key, str) and re.fullmatch(r"[\w$-]{1,64}", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{shown(key)}]"


def shown(value: object) -> str:
    """A value as JSON spells it, on one line and short; what JSON does not have, as Python does.

    Args:
        value: Anything.

    Returns:
        At most about 80 characters.
    """
    if isinstance(value, str):
        text = value if len(value) <= 60 else f"{value[:60]}…"
        return json.dumps(text, ensure_ascii=not text.isprintable())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "-Infinity" if value < 0 else "Infinity"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "an integer of more than 30 digits"
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = " ".join(reprlib.repr(value).split())
    return f"{text} (of type {type(value).__name__})"


def shown_path(path: object) -> str:
    """A file's name, safe to print on one line.

    Args:
        path: As the user gave it.

    Returns:
        The name itself, or quoted and escaped where it holds odd characters.
    """
    text = str(path)
    return text if text.isprintable() and len(text) <= 200 else shown(text)


def one_of(words: Sequence[str]) -> str:
    """The phrase for a choice.

    Args:
        words: The valid words.

    Returns:
        `'one of "a", "b"'`, or the only word in quotes.
    """
    quoted = ", ".join(f'"{word}"' for word in words)
    return f"one of {quoted}" if len(words) > 1 else quoted


def _where(path: str) -> str:
    return f"{path}: " if path else ""


def _describe_one(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One error of pydantic's, in our words."""
    kind, context = details["type"], details.get("ctx", {})
    path, section, field = _locate(details["loc"], model)
    received: object = details["input"]
    if kind == "extra_forbidden":
        known = list(section.model_fields)
        hint = nearest_hint(details["loc"][-1], known)
        return f"{path}: unknown key. Expected one of: {', '.join(known)}.{hint}"
    if kind == "missing":
        return f"{path}: this key is needed here, and is missing."
    if kind.startswith("union_tag"):
        return _describe_kind(path, [tag for tag, _ in _tagged(field)], received)
    if kind == "literal_error":
        words = _literals(field)
        return problem(path, one_of(words), received, nearest_hint(received, words))
    expected = _expected(details, field)
    if "key" in context:
        return problem(join(path, context["key"]), expected, context["received"])
    if context.get("whole"):
        return f"{_where(path)}expected {expected}."
    return problem(path, expected, received)


def _describe_kind(path: str, kinds: list[str], received: object) -> str:
    """The key that tells the sections of a union apart is missing or unknown."""
    path = join(path, "kind")
    if not isinstance(received, dict) or "kind" not in received:
        return f"{path}: this key is needed here, {one_of(kinds)}, and is missing."
    kind = received["kind"]
    return problem(path, one_of(kinds), kind, nearest_hint(kind, kinds))


def _expected(details: ErrorDetails, field: Any) -> str:
    """What a value should have been, in words."""
    kind, context = details["type"], details.get("ctx", {})
    if "expected" in context:
        return str(context["expected"])
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    words = _KINDS.get(kind.partition("_")[0], details["msg"])
    if type(None) not in get_args(field):
        return words
    return "true, false or null" if words == "true or false" else f"{words} or null"


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel], Any]:
    """Key path of an error, the section that holds its last key, and its field's annotation.

    In pydantic's location the tag of a union stands between the keys; the file has no such key.
    """
    path, section, field = "", model, None
    candidates = [model]
    for part in loc:
        if len(candidates) > 1 and isinstance(part, str):
            candidates = [section for tag, section in _tagged(field) if tag == part]
            continue
        path = join(path, part)
        if isinstance(part, int) or not candidates:
            continue
        section = candidates[0]
        info = section.model_fields.get(part)
        field = info.annotation if info else None
        candidates = _models(field)
    return path, section, field


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tagged(annotation: Any) -> list[tuple[str, type[BaseModel]]]:
    """The models of a discriminated union with their tags."""
    return [(model.model_fields["kind"].default, model) for model in _models(annotation)]


def _literals(annotation: Any) -> list[str]:
    """The words of a `Literal`, of an optional one too."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _literals(part)]
    return [word for word in get_args(annotation) if isinstance(word, str)]
