"""What a tuning shows while it runs."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Progress:
    """Says nothing, or what it is given as a line of text.

    Args:
        show: Takes the line; None for silence.
    """

    def __init__(self, show: Callable[[str], None] | None = None):
        self._show = show

    def say(self, text: str, ratio: float | None) -> None:
        """Takes what is being tried.

        Args:
            text: A few words.
            ratio: The best ratio to float32 so far, if there is one.
        """
        if self._show is not None:
            best = "" if ratio is None else f" (best so far: {ratio:.2f} times float32's speed)"
            self._show(f"{text}{best}")


class _Bar(Progress):
    def __init__(self, bar: Any, task: Any):
        super().__init__(self._describe)
        self._bar, self._task, self._began = bar, task, time.monotonic()

    def _describe(self, line: str) -> None:
        self._bar.update(self._task, description=line, completed=time.monotonic() - self._began)


@contextlib.contextmanager
def progress_for(wanted: bool | Callable[[str], None] | None, seconds: float) -> Iterator[Progress]:
    """Makes what shows the progress of a tuning.

    Args:
        wanted: Whether to show a bar; None shows it on a terminal. Or what takes lines.
        seconds: The time budget: the length of the bar.

    Yields:
        The progress.
    """
    if callable(wanted):
        yield Progress(wanted)
    elif wanted or (wanted is None and sys.stderr.isatty()):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
            yield _Bar(bar, bar.add_task("Tuning", total=seconds))
    else:
        yield Progress()
