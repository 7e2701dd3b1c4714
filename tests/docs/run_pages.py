"""Runs the code of pages, each in a namespace and an empty folder of its own.

    python run_pages.py RESULTS.json PAGE...

A block with a caption is written to the file of that name first. What `print(...)  # text` prints
has to be that text. RESULTS.json says of each page how many outputs were compared, or what it
raised.
"""

import json
import os
import random
import re
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
from pages import blocks

EXPECTED = re.compile(r"^print\(.*\)  # (?P<text>.+)$")


class Printer:
    """Stands for `print`, and compares."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.compared = 0

    def __call__(self, *values: object, **options: object) -> None:
        print(*values, **options)
        here = EXPECTED.match(self.lines[sys._getframe(1).f_lineno - 1])
        if here:
            self.compared += 1
            found = " ".join(map(str, values))
            if found != here["text"]:
                raise AssertionError(f"expected {here['text']!r}, as it says. Printed: {found!r}")


def run(page: Path) -> int:
    """Runs a page in the current folder; returns how many outputs were compared."""
    printer = Printer(page.read_text(encoding="utf-8").splitlines())
    names = {"__name__": "page", "print": printer}
    for block in blocks(page, "python", "json"):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            # Blank lines ahead: a traceback then has the numbers of the page's lines.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    return printer.compared


def outcome(page: Path) -> int | str:
    """What `run` returned, or the traceback of what it raised."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
    # Keras takes the seeds of its initializers from Python's generator.
    random.seed(0)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return run(page)
        except Exception:  # noqa: BLE001 - the next page is to run, too
            return traceback.format_exc()
        finally:
            os.chdir("/")


def main(results: Path, *pages: str) -> None:
    sys.path.insert(0, "")
    found = {page: outcome(Path(page)) for page in pages}
    results.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
