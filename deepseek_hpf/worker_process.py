"""A process of its own for a piece of work, which talks to its parent through a pipe.

A fresh process has a clean memory, fresh seeds and a framework as it starts; one that is killed for
want of memory takes nothing else with it.
"""

import contextlib
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepseek_hpf.errors import ConfigError

# Quiet start; and no process takes the whole of an accelerator's memory, as others need some.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
Message = tuple[str, Any]


@dataclass
class WorkerProcess:
    """The parent's side: a process that runs, and the pipe to it."""

    process: Any
    connection: Connection
    stderr: Path

    @classmethod
    @contextlib.contextmanager
    def started(cls, work: Callable[..., None], argument: object) -> Iterator["WorkerProcess"]:
        """Starts the process; on leaving it is ended.

        Args:
            work: A function of a module, called with the connection, the argument, and the path of
                a file for `send_stderr_to`.
            argument: What it is to do; has to be picklable.

        Yields:
            The process.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            stderr = Path(folder) / "stderr"
            process = context.Process(
                target=work, args=(theirs, argument, str(stderr)), daemon=True
            )
            with quiet_environment():
                process.start()
            theirs.close()
            try:
                yield cls(process, ours, stderr)
            finally:
                ours.close()
                process.join(timeout=5)
                if process.is_alive():
                    process.kill()
                    process.join()

    def receive(self) -> Message:
        """Waits for a message.

        Returns:
            What the work sent.

        Raises:
            ConfigError: The process ended first; with its last words and its exit code.
        """
        try:
            message: Message = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            self.process.join(timeout=5)
            raise ConfigError(
                f"The process of a run ended before its time{self._last_words()} "
                "(exit code -9 means that it was killed, most often for want of memory: lower the "
                f"batch size). Received: exit code {self.process.exitcode}"
            ) from error
        return message

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.stderr.read_text(encoding="utf-8", errors="replace").split("\n")
            words = [line for line in lines if line.strip()]
            return f", with {words[-1]!r}" if words else ""
        return ""


@contextlib.contextmanager
def quiet_environment() -> Iterator[None]:
    """Sets what a child process has to find in its environment, where the user did not."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def send_stderr_to(path: str) -> None:
    """The child's side: sends the standard error, which frameworks write to, to a file."""
    with open(path, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 2)


class LogSender(logging.Handler):
    """The child's side: sends warnings to the parent, as `("log", line)`.

    Args:
        connection: To the parent.
    """

    def __init__(self, connection: Connection):
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record's level and message."""
        self._connection.send(("log", f"{record.levelname}: {record.getMessage()}"))
