"""Puts what is generated into the pages that ask for it: `<!-- generated: configuration -->`."""

from typing import Any

from command_reference import command_reference
from configuration_reference import configuration_reference

GENERATED = {
    "<!-- generated: configuration -->": configuration_reference,
    "<!-- generated: commands -->": command_reference,
}


def _fill(app: Any, name: str, source: list[str]) -> None:
    for comment, generate in GENERATED.items():
        if comment in source[0]:
            source[0] = source[0].replace(comment, generate())


def setup(app: Any) -> dict[str, bool]:
    """Registers the filling of pages."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
