"""Strict reading of the JSON files, and the wording of what is wrong with them."""

import difflib
import json
import math
import re
import reprlib
import types
from collections.abc import Iterable, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath

FILE_LIMIT = 1 << 20  # bytes
DEPTH_LIMIT = 32  # levels of brackets; a valid file has at most 4
SHOWN_PROBLEMS = 3

# Longest first: UTF-32-LE begins with the mark of UTF-16-LE.
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32-LE"),
    (b"\x00\x00\xfe\xff", "UTF-32-BE"),
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe", "UTF-16-LE"),
    (b"\xfe\xff", "UTF-16-BE"),
)

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
    "greater_than": ("a number greater than {gt}",),
    "greater_than_equal": ("a number of at least {ge}",),
    "less_than": ("a number less than {lt}",),
    "less_than_equal": ("a number of at most {le}",),
    "string_too_short": ("at least {min_length} character(s)",),
    "string_too_long": ("at most {max_length:,} characters",),
    "too_long": ("at most {max_length:,} entries",),
}


def read_json_object(path: StrPath) -> dict[str, Any]:
    """Reads one JSON object from a file, strictly.

    At most `FILE_LIMIT` bytes are read, as UTF-8 without a byte-order mark. Duplicate keys, numbers that are not
    finite and more than `DEPTH_LIMIT` nested brackets are refused.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ConfigError: Anything at all is wrong with the file; its name comes first in the message.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(_unreadable(path, error)) from error
    try:
        return parse_json_object(data)
    except ConfigError as error:
        raise ConfigError(f"{shown_path(path)}: {error}") from error.__cause__


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parses what `read_json_object` has read.

    Args:
        data: The content of the file.

    Returns:
        The object.

    Raises:
        ConfigError: As for the file, without its name.
    """
    text = _decode(data)
    try:
        value = json.loads(text, object_pairs_hook=_Object)
    except RecursionError:
        raise ConfigError(_too_deep()) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"expected JSON; line {error.lineno}, column {error.colno}: {error.msg}. "
            "JSON has no comments and no trailing commas, and its strings take double quotes."
        ) from error
    except ValueError as error:  # an integer beyond Python's limit of digits
        raise ConfigError(f"expected JSON with numbers of ordinary length; {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f'expected a JSON object, {{"policy": …}}. Received: {shown(value)}')
    check_tree(value)
    return value


def check_tree(root: object) -> None:
    """Refuses duplicate keys, numbers that are not finite, and deep nesting, wherever they are.

    Args:
        root: Nested dicts and lists, from a file or from Python.

    Raises:
        ConfigError: With the key path of what was found.
    """
    pending: list[tuple[object, str, int]] = [(root, "", 0)]
    while pending:
        value, path, depth = pending.pop()
        if depth > DEPTH_LIMIT:
            raise ConfigError(_too_deep())
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(problem(path, "a finite number", value))
        if isinstance(value, _Object) and value.duplicate is not None:
            where = join(path, value.duplicate)
            raise ConfigError(f"{where}: this key is there twice; keep one of them.")
        if isinstance(value, dict):
            children = [(v, join(path, k), depth + 1) for k, v in value.items()]
        elif isinstance(value, list | tuple):
            children = [(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        else:
            continue
        pending.extend(reversed(children))


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
    where = f"{path}: " if path else ""
    return f"{where}expected {expected}. Received: {_last_key(path)}{shown(received)}.{nearest}"


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
    if isinstance(key, int) and not isinstance(key, bool):
        return f"{path}[{key}]"
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
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "an integer of more than 30 digits"
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = reprlib.repr(value).replace("\n", " ")
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


class _Object(dict[str, Any]):
    """A JSON object that remembers the first key it was given twice."""

    def __init__(self, pairs: Sequence[tuple[str, Any]]):
        super().__init__(pairs)
        self.duplicate: str | None = None
        if len(self) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    self.duplicate = key
                    break
                seen.add(key)


def _decode(data: bytes) -> str:
    """UTF-8 without a mark, within the limit, and not empty."""
    if len(data) > FILE_LIMIT:
        raise ConfigError(
            f"expected a configuration of at most {FILE_LIMIT:,} bytes; this file is larger."
        )
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise ConfigError(
                f"expected UTF-8 without a byte-order mark. Received: the mark of {encoding} "
                f"(bytes {mark.hex(' ').upper()}). Save the file as plain UTF-8."
            )
    if b"\0" in data:
        raise ConfigError(
            f"expected UTF-8. Received: a zero byte at offset {data.index(0)}, as in UTF-16, UTF-32 "
            "or a binary file. Save the file as plain UTF-8."
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"expected UTF-8. Received: byte 0x{data[error.start]:02X} at offset {error.start} "
            f"({error.reason}). Save the file as plain UTF-8."
        ) from error
    if not text.strip():
        raise ConfigError("expected a JSON object, at least {}. Received: an empty file.")
    return text


def _unreadable(path: object, error: Exception) -> str:
    """Says why a file could not be opened or read."""
    name = shown_path(path)
    if isinstance(error, FileNotFoundError):
        return f"{name}: no such file."
    if isinstance(error, IsADirectoryError):
        return f"{name}: expected a file. Received: a directory."
    if isinstance(error, OSError):
        return f"{name}: cannot be read: {error.strerror or error}."
    return f"expected the path of a file. Received: path={shown(path)} ({error})."


def _too_deep() -> str:
    return f"expected at most {DEPTH_LIMIT} levels of nested brackets; this goes deeper."


def _last_key(path: str) -> str:
    """`"rules[2].policy"` -> `"policy="`."""
    key = path.rpartition(".")[2]
    return f"{key}=" if key else ""


def _describe_one(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One error of pydantic's, in our words."""
    kind, context = details["type"], details.get("ctx", {})
    path, section, field = _locate(details["loc"], model)
    received: object = details["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        known = list(section.model_fields)
        key = details["loc"][-1]
        return (
            f"{path}: unknown key. Expected one of: {', '.join(known)}.{nearest_hint(key, known)}"
        )
    if kind == "missing":
        return f"{path}: expected a value; this key is needed here."
    if kind.startswith("union_tag"):
        tags = [tag for tag, _ in _tagged(field)]
        tag = received.get("kind") if isinstance(received, dict) else received
        return problem(join(path, "kind"), one_of(tags), tag, nearest_hint(tag, tags))
    if kind == "literal_error":
        words = [word for word in _literals(field) if word is not None]
        return problem(path, one_of(words), received, nearest_hint(received, words))
    if "key" in context:  # our own cross-field checks
        path, received = join(path, context["key"]), context["received"]
    return problem(path, _expected(details, field), received)


def _expected(details: ErrorDetails, field: Any) -> str:
    """What a value should have been, in words."""
    kind, context = details["type"], details.get("ctx", {})
    if "expected" in context:
        return str(context["expected"])
    if kind in _BOUNDS:
        return _BOUNDS[kind][0].format(**context)
    words = _KINDS.get(kind.partition("_")[0], details["msg"])
    return f"{words} or null" if type(None) in get_args(field) else words


def one_of(words: Sequence[str]) -> str:
    """`one of "a", "b", "c"`.

    Args:
        words: The valid words.

    Returns:
        The phrase.
    """
    quoted = ", ".join(f'"{word}"' for word in words)
    return f"one of {quoted}" if len(words) > 1 else quoted


def _locate(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, type[BaseModel], Any]:
    """Key path of an error, the section that holds its last key, and the annotation of its field.

    In pydantic's location the tag of a union stands between the keys; it is not part of the file's path.
    """
    path, section, field = "", model, None
    candidates = [model]
    for part in loc:
        if len(candidates) > 1 and not isinstance(part, int):
            candidates = [c for tag, c in _tagged(field) if tag == part]
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


def _literals(annotation: Any) -> list[Any]:
    """The words of a `Literal`, of an optional one too."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _literals(part)]
    return [word for word in get_args(annotation) if isinstance(word, str)]
