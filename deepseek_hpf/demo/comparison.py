"""The two trainings side by side: two processes that take turns, an epoch each.

A process of its own gives each run a clean measure of memory and fresh seeds; turns let a machine
that slows down, or is shared, slow both alike. Only one trains at any time.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from deepseek_hpf.demo.records import Comparison, EpochDone, Event, RunResult, RunSettings, RunStart
from deepseek_hpf.demo.worker import work
from deepseek_hpf.errors import ConfigError

# Quiet start; and neither process takes the whole of an accelerator's memory, as both need some.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
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
                run.connection.send(True)
                run.receive_until(EpochDone)
        first, second = (run.receive_until(RunResult) for run in runs)
    return Comparison(settings=settings, baseline=first, policy=second)


@dataclasses.dataclass
class _Run:
    process: Any
    connection: Connection
    number: int
    listener: Listener
    stderr: Path

    @classmethod
    @contextlib.contextmanager
    def started(cls, settings: RunSettings, number: int, listener: Listener) -> Iterator["_Run"]:
        """Starts the process; on leaving it is ended."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            stderr = Path(folder) / "stderr"
            process = context.Process(
                target=work, args=(theirs, settings, str(stderr)), daemon=True
            )
            with _environment():
                process.start()
            theirs.close()
            try:
                yield cls(process, ours, number, listener, stderr)
            finally:
                ours.close()
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()

    def receive_until(self, wanted: type) -> Any:
        """Passes messages on until there is one of the type that is wanted, and returns that."""
        while True:
            kind, content = self._receive()
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

    def _receive(self) -> tuple[str, Any]:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(timeout=5)
            raise ConfigError(
                f"The process of a run ended before its time{self._last_words()} "
                "(exit code -9 means that it was killed, most often for want of memory: lower the "
                f"batch size). Received: exit code {self.process.exitcode}"
            ) from error

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.stderr.read_text(encoding="utf-8", errors="replace").split("\n")
            words = [line for line in lines if line.strip()]
            return f", with {words[-1]!r}" if words else ""
        return ""


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Sets what a child process has to find in its environment, where the user did not."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
