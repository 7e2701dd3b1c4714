"""The parent's side of a trial: it watches the memory of the process, and ends it at the limit."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.hardware import cpu
from deepseek_hpf.memory.process_memory import resident_memory
from deepseek_hpf.memory.trial_worker import work
from deepseek_hpf.worker_process import WorkerProcess

_LOOK_EVERY = 0.02  # seconds
_LOOK_AT_MACHINE_EVERY = 0.25
_LEFT_TO_OTHERS = 0.02  # of the machine's memory: below that, whoever takes it, the trial ends
_KILLED = "exit code -9"


class DoesNotFitError(RuntimeError):
    """A trial needed more memory than it may have.

    Args:
        reason: In a few words.
        needed: Bytes that it had when it was ended, at least; None where that is not known.
    """

    def __init__(self, reason: str, needed: int | None = None):
        super().__init__(reason)
        self.needed = needed


class TrialProcess:
    """A process in which a model is tried; made by `started`.

    Args:
        worker: The process.
        limit: Bytes that it may have beyond what it has without the model.
    """

    def __init__(self, worker: WorkerProcess, limit: int):
        self._worker = worker
        self._limit = limit
        self._before = 0
        self._on_cpu = False
        self.logged: list[str] = []
        """Lines that it logged, each once."""

    @classmethod
    @contextlib.contextmanager
    def started(cls, job: Any, limit: int) -> Iterator["TrialProcess"]:
        """Starts the process and has it make the model.

        Args:
            job: A `TrialJob`.
            limit: Bytes.

        Yields:
            The process; it is ended on leaving.

        Raises:
            ConfigError: The model cannot be made.
            DoesNotFitError: Not even the model fits.
        """
        with WorkerProcess.started(work, job) as worker:
            process = cls(worker, limit)
            process._before, process._on_cpu = process._receive("started")
            process._receive("made")
            yield process
            with contextlib.suppress(OSError):
                worker.connection.send(None)

    def ask(self, kind: str, rows: int) -> Any:
        """Has it train, or estimate.

        Args:
            kind: `"step"` or `"estimate"`.
            rows: Of the batch.

        Returns:
            A `StepTrial` or a `MemoryEstimate`.

        Raises:
            ConfigError: The step fails for another reason than memory.
            DoesNotFitError: It needs more than the limit. The process is gone then.
        """
        self._worker.connection.send((kind, rows))
        return self._receive(kind)

    def _receive(self, kind: str) -> Any:
        while True:
            self._watch()
            try:
                received, content = self._worker.receive()
            except ConfigError as error:
                if _KILLED in str(error):
                    raise DoesNotFitError("the system ended it for want of memory") from error
                raise
            if received == kind:
                return content
            if received == "log":
                if content not in self.logged:
                    self.logged.append(str(content))
            elif received == "full":
                raise DoesNotFitError(str(content))
            else:
                raise ConfigError(str(content))

    def _watch(self) -> None:
        """Waits for a message, and looks at the memory meanwhile."""
        looked = time.monotonic()
        while not self._worker.connection.poll(_LOOK_EVERY):
            has = (resident_memory(self._worker.process.pid) or 0) - self._before
            if self._on_cpu and has > self._limit:
                self._end("it needs more than it may have", has)
            if time.monotonic() - looked > _LOOK_AT_MACHINE_EVERY:
                looked = time.monotonic()
                if _is_machine_full():
                    self._end("the machine's memory was used up", has)

    def _end(self, reason: str, has: int) -> None:
        self._worker.process.kill()
        self._worker.process.join()
        raise DoesNotFitError(reason, has)


def _is_machine_full() -> bool:
    device = cpu.probe()[0]
    if device.memory_free is None or device.memory_total is None:
        return False
    return device.memory_free < _LEFT_TO_OTHERS * device.memory_total
