"""The two trainings side by side: two processes that take turns, an epoch each.

A process of its own gives each run a clean measure of memory and fresh seeds; turns let a machine
that slows down, or is shared, slow both alike. Only one trains at any time.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol

from deepseek_hpf.demo.records import Comparison, EpochDone, Event, RunResult, RunSettings, RunStart
from deepseek_hpf.demo.worker import work
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.worker_process import WorkerProcess

BASELINE, POLICY = 0, 1


class Listener(Protocol):
    """Is told what happens in the runs, e.g. to show progress."""

    def event(self, run: int, event: Event) -> None:
        """Something happened in a run, `BASELINE` or `POLICY`."""

    def log(self, run: int, line: str) -> None:
        """A run logged a line."""


def compare(settings: RunSettings, listener: Listener) -> Comparison:
    """Trains twice from the same seed: in plain float32, and as the settings say.

    Args:
        settings: Of the run under a policy; the other differs from it by having none.
        listener: Is told what happens.

    Returns:
        Both results.

    Raises:
        ConfigError: The settings cannot be, or a process ended before its time.
    """
    baseline = dataclasses.replace(settings, policy=None, config_path=None)
    with contextlib.ExitStack() as stack:
        runs = []
        for number, one in enumerate((baseline, settings)):
            # The second starts when the first has its data, so that a download is not made twice.
            run = stack.enter_context(_Run.started(one, number, listener))
            run.receive_until(RunStart)
            runs.append(run)
        for epoch in range(settings.epochs):
            for run in runs if epoch % 2 == 0 else reversed(runs):
                run.begin_epoch()
                run.receive_until(EpochDone)
        first, second = (run.receive_until(RunResult) for run in runs)
    return Comparison(settings=settings, baseline=first, policy=second)


@dataclasses.dataclass
class _Run:
    worker: WorkerProcess
    number: int
    listener: Listener

    @classmethod
    @contextlib.contextmanager
    def started(cls, settings: RunSettings, number: int, listener: Listener) -> Iterator["_Run"]:
        """Starts the process; on leaving it is ended."""
        with WorkerProcess.started(work, settings) as worker:
            yield cls(worker, number, listener)

    def begin_epoch(self) -> None:
        """Lets the process train an epoch."""
        self.worker.connection.send(True)

    def receive_until(self, wanted: type) -> Any:
        """Passes messages on until there is one of the type that is wanted, and returns that."""
        while True:
            kind, content = self.worker.receive()
            if kind == "log":
                self.listener.log(self.number, str(content))
            elif kind == "event":
                self.listener.event(self.number, content)
            elif kind == "error":
                raise ConfigError(str(content))
            elif kind == "crash":
                raise RuntimeError(f"A run failed:\n{content}")
            if isinstance(content, wanted):
                return content
