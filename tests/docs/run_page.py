"""Runs the code of one page in one namespace: `python run_page.py PAGE`, in an empty folder.

A block with a caption is written to the file of that name first. What `print(...)  # text` prints
has to be that text.
"""

import re
import sys
from pathlib import Path

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


def run(page: Path) -> None:
    sys.path.insert(0, "")
    printer = Printer(page.read_text(encoding="utf-8").splitlines())
    names = {"__name__": "page", "print": printer}
    for block in blocks(page, "python", "json"):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            # Blank lines ahead: a traceback then has the numbers of the page's lines.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
    print(f"{printer.compared} outputs are as the page says")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
