"""Progress on the terminal: a bar over the models, and what is being done."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.records import ModelResult, Stage
from deepseek_hpf.bench.table import notes
from deepseek_hpf.bench.tables import model_table


class ProgressDisplay:
    """Shows a benchmark while it runs; a context manager and a `runs.Listener`.

    Args:
        console: Where to show it.
        models: How many there are.
    """

    def __init__(self, console: Console, models: int):
        self._console = console
        self._model = ""
        self._stage = ""
        self._done = 0
        self._logged: set[str] = set()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task("", total=models)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, job: Job) -> None:
        """Names the model."""
        self._model = job.model
        self._logged.clear()
        self._progress.update(self._task, description=escape(job.model))

    def stage(self, stage: Stage) -> None:
        """Says what is being done; where there is no terminal, a line each."""
        self._progress.update(
            self._task,
            description=escape(f"{self._model}: {stage.text}"),
            completed=self._done + stage.done,
        )

    def log(self, line: str) -> None:
        """Shows a line once a model."""
        if line not in self._logged:
            self._logged.add(line)
            self._say(f"{self._model}: {line}")

    def end(self, result: ModelResult, *, measured: bool) -> None:
        """Shows the table of the model."""
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        if not measured:
            self._say(f"{result.model}: measured before, on {result.when}")
        if result.contenders:
            self._console.print(model_table(result))
        for note in notes(result):
            self._say(f"{result.model}: {note}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
