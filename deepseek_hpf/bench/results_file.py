"""Results of models as lines of JSON: a long benchmark goes on where it was cut off."""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from deepseek_hpf.bench.records import FORMAT, ModelResult
from deepseek_hpf.config_wording import shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath, write_text_atomically

_ADAPTER = TypeAdapter(ModelResult)


def read_results(path: StrPath) -> list[ModelResult]:
    """Reads results.

    Args:
        path: A file that `write_results` wrote.

    Returns:
        The results, in the file's order.

    Raises:
        ConfigError: A line is no result, or of another version.
        OSError: The file cannot be read.

    Example:
        >>> write_results("results.jsonl", [])
        >>> read_results("results.jsonl")
        []
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown_path(path)}: expected text. Received bytes: {error}") from error
    return [
        _parse(line, number, path) for number, line in enumerate(lines, start=1) if line.strip()
    ]


def write_results(path: StrPath, results: Iterable[ModelResult]) -> None:
    """Writes results, one a line, whole or not at all.

    Args:
        path: The file; what was there is replaced.
        results: What to write.

    Raises:
        OSError: It cannot be written.
    """
    lines = [_ADAPTER.dump_json(result).decode() + "\n" for result in results]
    write_text_atomically(path, "".join(lines))


def as_json(result: ModelResult) -> dict[str, object]:
    """Returns a result as JSON values."""
    values: dict[str, object] = _ADAPTER.dump_python(result, mode="json")
    return values


def _parse(line: str, number: int, path: StrPath) -> ModelResult:
    where = f"{shown_path(path)}, line {number}"
    try:
        values = json.loads(line)
        version = values.get("format") if isinstance(values, dict) else None
        if version != FORMAT:
            raise ConfigError(
                f"{where}: expected a result of format {FORMAT}, as `hpf bench --results` writes "
                f"it. Received: format={version!r}"
            )
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: no result of a benchmark: {place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: expected JSON. Received: {error}") from error
