"""`BENCHMARKS.md`: the results with hardware, versions, date, and the command that made them."""

from collections.abc import Iterable, Sequence

from deepseek_hpf.bench.records import FLOAT32, OURS, ModelResult
from deepseek_hpf.bench.summary import in_groups, sentences, summarize
from deepseek_hpf.bench.table import contenders, memory, notes, suite_columns, suite_rows
from deepseek_hpf.scheduling.auto import BACKEND_NAMES

_INTRODUCTION = f"""\
# Benchmarks

Whole training steps (forward, backward, optimizer) on made-up data. Each contender is a model of
its own, from the same factory, seed and batch. All are timed in turns, round by round, and a ratio
is taken within each round, so that what else the machine does hits both.

**Ratios are to {FLOAT32}: above 1 is faster.** In brackets: the quartiles over the rounds. A
contender more than twice as slow is timed in fewer rounds, or by its first steps where those would
take long. "{OURS}" trains with the configuration that `tune` chose for the model in that run.
"""


def render_markdown(results: Iterable[ModelResult], command: str) -> str:
    """Returns the page.

    Args:
        results: Of any back ends and machines; each has a section.
        command: What writes the page anew from what is measured.

    Returns:
        Markdown, with a final newline.
    """
    parts = [_INTRODUCTION, f"Written by `{command}`."]
    for group in in_groups(results):
        parts.append(_section(group))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _section(group: Sequence[ModelResult]) -> str:
    machine = group[0].machine
    title = f"## Keras on {BACKEND_NAMES.get(machine.backend, machine.backend)}, "
    parts = [title + " and ".join(machine.devices), _facts(group)]
    parts.append(_table(suite_columns(group), suite_rows(group, quartiles=True)))
    parts += sentences(summarize(group))
    if any(each.peak_memory for result in group for each in result.contenders):
        parts.append("Peak memory of a step:")
        parts.append(_table(["model", *contenders(group)], _memory_rows(group)))
    parts.append(_notes(group))
    return "\n\n".join(filter(None, parts))


def _facts(group: Sequence[ModelResult]) -> str:
    machine = group[0].machine
    dates = sorted({result.when for result in group})
    commands = dict.fromkeys(result.command for result in group if result.command)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"- Hardware: {'; '.join(machine.devices)}. "
        + " ".join(f"{name}: {word}." for name, word in machine.formats.items()),
        f"- Software: {machine.system}; {versions}.",
        f"- Date: {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.",
        *(f"- Command: `KERAS_BACKEND={machine.backend} {command}`" for command in commands),
    ]
    return "\n".join(lines)


def _memory_rows(group: Sequence[ModelResult]) -> list[list[str]]:
    return [
        [result.model, *(memory(result, name) for name in contenders(group))] for result in group
    ]


def _notes(group: Sequence[ModelResult]) -> str:
    """A line for each note; one that holds for several models is said once."""
    models: dict[str, list[str]] = {}
    for result in group:
        for note in notes(result):
            models.setdefault(note, []).append(result.model)
    return "\n".join(f"- {_whose(names, len(group))}: {note}" for note, names in models.items())


def _whose(names: Sequence[str], models: int) -> str:
    return "All models" if 1 < len(names) == models else "; ".join(names)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    right = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(_line(cells) for cells in (columns, right, *rows))


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"
