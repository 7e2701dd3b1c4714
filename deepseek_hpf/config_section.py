"""`ConfigSection`: a frozen, validated part of a configuration, to and from JSON."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from deepseek_hpf.config_json import check_tree, parse_json_object, read_json_object
from deepseek_hpf.config_wording import describe, shown, shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath, write_text_atomically


class ConfigSection(BaseModel):
    """A frozen part of a configuration; whatever is wrong with it is one `ConfigError`.

    `model_fields_set` tells which keys were given, as opposed to filled in by default. They are
    what `to_dict` writes, so that a round trip through JSON keeps the difference.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any):
        check_tree(values)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(describe(error, type(self))) from None

    # A section within a section is then validated by pydantic's core and not through `__init__`:
    # all problems come in one error, with whole key paths.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(
            f"{type(self).__name__} is frozen. Received: {name}={shown(value)}. "
            f"Derive another one with `.replace({name}=…)`."
        )

    def __delattr__(self, name: str) -> None:
        raise ConfigError(
            f"{type(self).__name__} is frozen. Received: del {name}. Make one without that key."
        )

    def replace(self, **changes: Any) -> Self:
        """Returns a validated copy with some keys changed.

        Args:
            **changes: Keys and their new values.

        Returns:
            The copy; the original stays as it is.

        Raises:
            ConfigError: A key or value is not valid.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Pydantic's copy, except that what is updated is validated."""
        return self.replace(**update) if update else super().model_copy(deep=deep)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Pydantic's validation, except that it raises `ConfigError`."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from None

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Self:
        """As `from_json`, from a string or bytes."""
        if isinstance(json_data, str):  # half a surrogate pair is for `parse_json_object` to refuse
            json_data = json_data.encode("utf-8", "surrogatepass")
        data = bytes(json_data)
        return cls.from_dict(parse_json_object(data))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a section from what `to_dict` returned, or from parsed JSON.

        Args:
            values: Keys and values, nested as in the file.

        Returns:
            The section.

        Raises:
            ConfigError: A key or value is not valid.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected a dict. Received: {shown(values)}.")
        values = dict(values)
        check_tree(values)  # before `**`, which takes strings only
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys that were given, as plain dicts, lists and scalars.

        Returns:
            What `from_dict` makes an equal section of.
        """
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def from_json(cls, path: StrPath) -> Self:
        """Reads a file.

        Args:
            path: A JSON file in UTF-8 of at most 1 MiB.

        Returns:
            The section.

        Raises:
            ConfigError: The file cannot be read, is not strict JSON, or a key or value is not
                valid. The message has at most three lines; each begins with the file's name.
        """
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            lines = (f"{shown_path(path)}: {line}" for line in str(error).split("\n"))
            raise ConfigError("\n".join(lines)) from None

    def to_json(self, path: StrPath) -> None:
        """Writes a file, whole or not at all.

        Args:
            path: Where to. An existing file is replaced.

        Raises:
            OSError: The place cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_text_atomically(path, f"{text}\n")
