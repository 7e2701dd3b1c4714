"""Docstrings hold a little Markdown: links, fences, tables. Sphinx reads reStructuredText."""

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\s*(https?://[^)\s]+)\s*\)")
FENCE = re.compile(r"^(\s*)```(\w*)$")
ATTRIBUTES: dict[str, list[str]] = {}  # docstrings of attributes, while napoleon has them
UNTELLING = re.compile(r"<function [^,)]*>(?=[,)])|<factory>")
PRIVATE = re.compile(r", _\w+=\.\.\.")
ROW = re.compile(r"^(\s*)\|(.*)\|$")


def converted(lines: list[str]) -> list[str]:
    """Returns the lines of a docstring as reStructuredText.

    Args:
        lines: The lines, as autodoc has them.

    Returns:
        New lines.
    """
    text = LINK.sub(_link, "\n".join(lines))
    result: list[str] = []
    indent: str | None = None  # of the fence that is open
    for line in text.split("\n"):
        fence = FENCE.match(line)
        if fence and indent is None:
            indent = fence[1]
            result += [f"{indent}.. code-block:: {fence[2] or 'text'}", ""]
        elif fence:
            indent = None
            result.append("")
        elif indent is not None:
            result.append(f"   {line}")
        else:
            result += _row(line, result)
    return result


def _link(found: re.Match[str]) -> str:
    words = found[1].replace("`", "")
    return f"`{words} <{found[2]}>`__"


def _row(line: str, before: list[str]) -> list[str]:
    """A line of a table as an item of a list table; any other line as it is."""
    found = ROW.match(line)
    if not found:
        return [line]
    cells = [cell.strip() for cell in found[2].split("|")]
    if all(set(cell) <= set("-: ") for cell in cells):
        return []
    first = not before or not before[-1].strip()
    head = [f"{found[1]}.. list-table::", f"{found[1]}   :header-rows: 1", ""] if first else []
    marks = ["* -", *["  -"] * (len(cells) - 1)]
    rows = [f"{found[1]}   {mark} {cell}" for mark, cell in zip(marks, cells, strict=True)]
    return head + rows


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)
    if what in ("attribute", "property", "data"):
        ATTRIBUTES[name] = list(lines)


def _restore(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undoes napoleon's reading of an attribute's first words up to a colon as its type."""
    lines[:] = ATTRIBUTES.pop(name, lines)


def _shorten(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str
) -> tuple[str, str] | None:
    """Leaves out of a signature what only says that there is a function or a factory."""
    return signature and (PRIVATE.sub("", UNTELLING.sub("...", signature)), returned)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what Keras and pydantic call, and users do not."""
    return True if name.startswith(("on_", "set_model", "model_")) else None


def setup(app: Any) -> dict[str, bool]:
    """Registers the conversion before napoleon, which reads the sections, and a repair after it."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-process-docstring", _restore, priority=900)
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
