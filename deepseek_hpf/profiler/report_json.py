"""A profile as JSON, and its JSON Schema, which is shipped beside this file.

After a change to the report: `python -m deepseek_hpf.profiler.report_json` writes it anew.
"""

import json
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deepseek_hpf.config_wording import shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import write_text_atomically
from deepseek_hpf.profiler.report import ProfileReport

SCHEMA_FILE = Path(__file__).with_name("profile.schema.json")
VERSION = 1
_ADAPTER: TypeAdapter[ProfileReport] = TypeAdapter(ProfileReport)


def schema_text() -> str:
    """The JSON Schema (draft 2020-12) of a profile's file.

    Returns:
        Indented JSON that ends with a line end.
    """
    schema: dict[str, Any] = _ADAPTER.json_schema()
    schema["properties"] = {"version": {"const": VERSION}, **schema["properties"]}
    schema["required"] = ["version", *schema["required"]]
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def to_json(report: ProfileReport) -> str:
    """Returns the profile as JSON that `from_json` reads back unchanged.

    Args:
        report: The profile.
    """
    values = {"version": VERSION, **report.to_dict()}
    return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str, name: str = "the text") -> ProfileReport:
    """Reads a profile.

    Args:
        text: JSON, as `to_json` writes it.
        name: What it is called in an error.

    Returns:
        The profile.

    Raises:
        ConfigError: It is no JSON, or no profile of this version.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: expected a profile as JSON. Received: {error}.") from error
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise ConfigError(
            f"{name}: expected a profile of version {VERSION}, as `hpf_profiler --json` writes it. "
            "Make it anew."
        )
    try:
        return _ADAPTER.validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"{name}: no profile: {where}: {first['msg']}. Make it anew with `hpf_profiler --json`."
        ) from error


def read_report(path: str | os.PathLike[str]) -> ProfileReport:
    """Reads a profile from a file.

    Args:
        path: Where it is.

    Raises:
        ConfigError: As `from_json`; or the file is not UTF-8.
        OSError: The file cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown_path(path)}: expected a profile as JSON in UTF-8.") from error
    return from_json(text, shown_path(path))


if __name__ == "__main__":
    write_text_atomically(SCHEMA_FILE, schema_text())
