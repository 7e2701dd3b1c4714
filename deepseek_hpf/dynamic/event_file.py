"""Reads an event file back as the run that it tells of."""

from collections import Counter
from collections.abc import Iterator
from typing import IO

from deepseek_hpf.config_wording import shown, shown_path
from deepseek_hpf.dynamic.event_lines import (
    DecisionLine,
    EventLine,
    ScaleLine,
    StartLine,
    WindowLine,
    parse_line,
)
from deepseek_hpf.dynamic.recorded_run import RecordedRun
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath

LONGEST_LINE = 1 << 26  # bytes


def read_events(path: StrPath) -> RecordedRun:
    r"""Reads an event file, also that of a run which still goes on.

    A last line without its end, as a killed run leaves it, is passed over. So are lines that a
    resumed run has written anew, and those of kinds that later versions may have.

    Args:
        path: The file.

    Returns:
        The run.

    Raises:
        ConfigError: The file cannot be read, is empty, or holds what is no event.

    Example:
        >>> from pathlib import Path
        >>> from deepseek_hpf.dynamic.event_file import read_events
        >>> start = '{"kind": "start", "step": 0, "model": "net", "policy": "mixed_float16", '
        >>> start += '"controller": "threshold", "blocks": {}, "precision": {}}'
        >>> _ = Path("events.jsonl").write_text(start + '\n{"kind": "window", "step": 50}\n{"ki')
        >>> read_events("events.jsonl").end
        50
    """
    try:
        with open(path, "rb") as file:
            return _run_of(file)
    except ConfigError as error:
        raise ConfigError(f"{shown_path(path)}{error}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{shown_path(path)}: cannot be read: {reason}.") from error


def _run_of(file: IO[bytes]) -> RecordedRun:
    lines: list[EventLine] = []
    unknown: Counter[str] = Counter()
    for number, line in _parsed(file):
        if isinstance(line, str):
            unknown[line] += 1
            continue
        if isinstance(line, StartLine):
            lines = [each for each in lines if _still_counts(each, line)]
        elif not lines:
            received = f"Received: {shown(line.kind)}."
            raise ConfigError(f', line {number}: expected the kind "start" first. {received}')
        lines.append(line)
    if not lines:
        raise ConfigError(": expected events. Received: none; has the run begun?")
    return RecordedRun(tuple(_last_words(lines)), tuple(_notes(unknown)))


def _parsed(file: IO[bytes]) -> Iterator[tuple[int, EventLine | str]]:
    number = 0
    while text := file.readline(LONGEST_LINE):
        number += 1
        if not text.strip():
            continue
        try:
            yield number, parse_line(text)
        except ConfigError as error:
            if not text.endswith(b"\n") and len(text) < LONGEST_LINE:
                return  # a killed run's, or a run's that is just writing it
            raise ConfigError(f", line {number}: {error}") from None


def _still_counts(line: EventLine, start: StartLine) -> bool:
    """Whether a line stands although the run went on from a step again.

    A read-out is of the steps before its own. A decision for the very step was made before or after
    the checkpoint; if before, the run goes on in the precision that it led to.
    """
    if line.step != start.step:
        return line.step < start.step
    if isinstance(line, DecisionLine):
        return line.precision == start.precision
    return isinstance(line, WindowLine | ScaleLine)


def _last_words(lines: list[EventLine]) -> Iterator[EventLine]:
    """Of two read-outs at one step, and of two loss scales for one, the later."""
    last: dict[tuple[str, int], EventLine] = {
        (line.kind, line.step): line for line in lines if isinstance(line, WindowLine | ScaleLine)
    }
    return (line for line in lines if last.get((line.kind, line.step), line) is line)


def _notes(unknown: Counter[str]) -> Iterator[str]:
    if unknown:
        kinds = ", ".join(shown(kind) for kind in list(unknown)[:5])
        more = ", …" if len(unknown) > 5 else ""
        yield (
            f"Lines of kinds that this version does not know were passed over: "
            f"{unknown.total():,} ({kinds}{more})."
        )
