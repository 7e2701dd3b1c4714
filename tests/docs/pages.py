"""The code blocks of the pages, as they are written there."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)

BLOCK = re.compile(
    r"^(?P<fence>```+)(?:\{code-block\} )?(?P<language>[a-z]+)\n"
    r"(?P<options>(?::\w+:[^\n]*\n)*)\n?(?P<text>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`(hpf(?:_profiler)? [^`]+)`")
CAPTION = re.compile(r"^:caption: (?P<name>\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        language: As the fence has it.
        text: What is in it.
        line: Number of its first line in the page, from 1.
        file: Name of the file that its caption makes it; None for none.
    """

    language: str
    text: str
    line: int
    file: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if match["language"] not in languages:
            continue
        caption = CAPTION.search(match["options"])
        line = text.count("\n", 0, match.start("text")) + 1
        file = caption["name"] if caption else None
        found.append(Block(match["language"], match["text"], line, file))
    return found


def commands(page: Path) -> list[str]:
    """The lines of the shell blocks of a page, without comments; continued lines are joined."""
    text = "".join(block.text for block in blocks(page, "sh"))
    lines = (line.partition(" #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def mentioned(page: Path) -> list[str]:
    """The commands of ours in a page's sentences."""
    return INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
