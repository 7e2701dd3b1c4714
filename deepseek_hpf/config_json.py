"""Strict reading of JSON: bounded, UTF-8, no key twice, no number that is not finite."""

import json
import math
from collections.abc import Sequence
from typing import Any

from deepseek_hpf.config_wording import join, problem, shown, shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath

FILE_LIMIT = 1 << 20  # bytes
DEPTH_LIMIT = 32  # levels of brackets; a valid file has at most 4

# Longest first: UTF-32-LE begins with the mark of UTF-16-LE.
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32-LE"),
    (b"\x00\x00\xfe\xff", "UTF-32-BE"),
    (b"\xef\xbb\xbf", "UTF-8"),
    (b"\xff\xfe", "UTF-16-LE"),
    (b"\xfe\xff", "UTF-16-BE"),
)
_TOO_DEEP = f"expected at most {DEPTH_LIMIT} levels of nested brackets; this goes deeper."
_ADVICE = "Save the file as plain UTF-8."


def read_json_object(path: StrPath) -> dict[str, Any]:
    """Reads one JSON object from a file, strictly.

    At most `FILE_LIMIT` bytes are read, as UTF-8 without a byte-order mark. Duplicate keys,
    numbers that are not finite and more than `DEPTH_LIMIT` nested brackets are refused.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ConfigError: Anything at all is wrong with the file; its name comes first in the message.
    """
    if isinstance(path, int):  # `open` would take it for a file descriptor
        raise ConfigError(f"expected the path of a file. Received: path={shown(path)}.")
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
        raise ConfigError(_TOO_DEEP) from None
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"expected JSON; line {error.lineno}, column {error.colno}: {error.msg}. "
            "JSON has no comments and no trailing commas, and its strings take double quotes."
        ) from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise ConfigError("expected JSON. Received: a number of thousands of digits.") from error
    if not isinstance(value, dict):
        raise ConfigError(f'expected a JSON object, {{"policy": …}}. Received: {shown(value)}.')
    check_tree(value)
    return value


def check_tree(root: object) -> None:
    """Refuses duplicate and odd keys, numbers that are not finite, and deep nesting, at any place.

    Args:
        root: Nested dicts and lists, from a file or from Python.

    Raises:
        ConfigError: With the key path of what was found.
    """
    pending: list[tuple[object, str, int]] = [(root, "", 0)]
    seen: set[int] = set()  # what Python shares, or puts into itself, is looked at once
    while pending:
        value, path, depth = pending.pop()
        if depth > DEPTH_LIMIT:
            raise ConfigError(_TOO_DEEP)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(problem(path, "a finite number", value))
        if id(value) in seen:
            continue
        if isinstance(value, dict):
            _check_keys(value, path)
            children = [(v, join(path, k), depth + 1) for k, v in value.items()]
        elif isinstance(value, list | tuple):
            children = [(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
        else:
            continue
        seen.add(id(value))
        pending.extend(reversed(children))


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


def _check_keys(value: dict[Any, Any], path: str) -> None:
    """Every key is a string, and there once."""
    if isinstance(value, _Object) and value.duplicate is not None:
        where = join(path, value.duplicate)
        raise ConfigError(f"{where}: expected each key once. Received: this key twice.")
    for key in value:
        if not isinstance(key, str):
            where = f"{path}: " if path else ""
            raise ConfigError(f"{where}expected strings as keys. Received: {shown(key)}.")


def _decode(data: bytes) -> str:
    """UTF-8 without a mark, within the limit, and not empty."""
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"expected a file of at most {FILE_LIMIT:,} bytes; this one is larger.")
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            raise ConfigError(
                "expected UTF-8 without a byte-order mark. Received: the mark of "
                f"{encoding} (bytes {mark.hex(' ').upper()}). {_ADVICE}"
            )
    if b"\0" in data:
        raise ConfigError(
            f"expected UTF-8. Received: a zero byte at offset {data.index(0)}, "
            f"as in UTF-16, UTF-32 or a binary file. {_ADVICE}"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"expected UTF-8. Received: byte 0x{data[error.start]:02X} at offset {error.start} "
            f"({error.reason}). {_ADVICE}"
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
