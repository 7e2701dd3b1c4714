"""Progress on the terminal: bars where there is one, a line an epoch where there is none."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from deepseek_hpf.demo.records import EpochDone, Event, RunStart, StepDone
from deepseek_hpf.demo.summary import NOT_KNOWN, run_name


class ProgressDisplay:
    """Shows two runs while they train; a context manager and a `comparison.Listener`.

    Args:
        console: Where to show it.
        epochs: How many epochs a run has.
    """

    def __init__(self, console: Console, epochs: int):
        self._console = console
        self._epochs = epochs
        self._names = ["float32", ""]
        self._tasks: dict[int, TaskID] = {}
        self._steps = [0, 0]
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  loss {task.fields[loss]}  test accuracy {task.fields[accuracy]}"),
            console=console,
            disable=not console.is_terminal,
        )

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

    def event(self, run: int, event: Event) -> None:
        """Shows what happened in a run."""
        if isinstance(event, RunStart):
            self._begin(run, event)
        elif isinstance(event, StepDone):
            self._steps[run] += 1
            self._progress.update(
                self._tasks[run], completed=self._steps[run], loss=f"{event.loss:.4f}"
            )
        else:
            self._end_epoch(run, event)

    def log(self, run: int, line: str) -> None:
        """Shows a line that a run logged."""
        self._console.print(f"{self._names[run]}: {line}", markup=False, highlight=False)

    def _begin(self, run: int, start: RunStart) -> None:
        self._names[run] = run_name(start, is_baseline=run == 0)
        self._tasks[run] = self._progress.add_task(
            escape(self._names[run]),
            total=start.steps_per_epoch * self._epochs,
            loss=NOT_KNOWN,
            accuracy=NOT_KNOWN,
        )
        if run == 1:
            self._console.print(
                f"{self._names[run]}: {start.reason}", markup=False, highlight=False
            )

    def _end_epoch(self, run: int, done: EpochDone) -> None:
        self._progress.update(self._tasks[run], accuracy=f"{done.test_accuracy:.2%}")
        if not self._console.is_terminal:
            self._console.print(
                f"{self._names[run]}: epoch {done.epoch + 1}/{self._epochs}, loss {done.loss:.4f}, "
                f"test accuracy {done.test_accuracy:.2%}, {sum(done.step_seconds):.1f} s",
                markup=False,
                highlight=False,
            )
