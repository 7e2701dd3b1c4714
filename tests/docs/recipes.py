"""Applies the recipes of CONTRIBUTING.md to a copy of the package, as they are written."""

import re
import shutil
from pathlib import Path

from pages import ROOT, Block, blocks

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CLUTTER = shutil.ignore_patterns("__pycache__", "*.pyc")


def recipe(heading: str) -> list[Block]:
    """The blocks with files and changes below a heading."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    start = text.index(f"\n## {heading}\n")
    end = text.find("\n## ", start + 1)
    first, last = (text.count("\n", 0, place) for place in (start, end if end > 0 else len(text)))
    found = blocks(CONTRIBUTING, "python", "diff")
    return [block for block in found if first < block.line < last]


def copied(folder: Path) -> Path:
    """A copy of the package and of its tests."""
    for name in ("deepseek_hpf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=CLUTTER)
    for name in ("setup.cfg", ".ruff.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def follow(steps: list[Block], folder: Path) -> list[str]:
    """Writes the files and makes the changes; returns the paths of all files concerned."""
    paths = []
    for step in steps:
        if step.language == "diff":
            paths.append(change(step.text, folder))
        else:
            assert step.file, f"line {step.line}: a block without a file's name"
            assert not (folder / step.file).exists()
            (folder / step.file).write_text(step.text, encoding="utf-8")
            paths.append(step.file)
    return paths


def change(diff: str, folder: Path) -> str:
    """Makes one change; the lines it begins from have to be there, once."""
    head, *lines = diff.splitlines()
    path = re.fullmatch(r"--- (\S+)", head)[1]
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", "-"))
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", "+"))
    text = (folder / path).read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path}: there is not, or not once:\n{before}"
    (folder / path).write_text(text.replace(before, after), encoding="utf-8")
    return path
