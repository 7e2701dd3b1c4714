"""Models measured one after the other, each in a process of its own."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.records import Machine, ModelResult, Stage
from deepseek_hpf.bench.results_file import read_results, write_results
from deepseek_hpf.bench.worker import work
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.worker_process import WorkerProcess


class Listener(Protocol):
    """Is told what happens, e.g. to show progress."""

    def begin(self, job: Job) -> None:
        """A model is begun."""

    def stage(self, stage: Stage) -> None:
        """What is being done with it."""

    def log(self, line: str) -> None:
        """It logged a line."""

    def end(self, result: ModelResult, *, measured: bool) -> None:
        """It is done; not measured if an earlier run has it."""


def run_all(
    jobs: Sequence[Job], listener: Listener, results_path: Path | None = None
) -> list[ModelResult]:
    """Measures models, and keeps what is measured at once.

    Args:
        jobs: The models.
        listener: Is told what happens.
        results_path: File of results: what it has of these models, measured in the same way on this
            machine with these versions, is not measured again; what is new is added.

    Returns:
        One result for each job. A model that fails is a result that says why.

    Raises:
        ConfigError: The back end is not there, or the file is none of results.
        OSError: The file cannot be read or written.
    """
    kept = read_results(results_path) if results_path is not None and results_path.exists() else []
    found = []
    for job in jobs:
        listener.begin(job)
        result = _run(job, listener, kept)
        measured = not any(result is each for each in kept)
        if measured:
            kept = [each for each in kept if each.key != result.key] + [result]
            if results_path is not None:
                write_results(results_path, kept)
        found.append(result)
        listener.end(result, measured=measured)
    return found


def _run(job: Job, listener: Listener, kept: Sequence[ModelResult]) -> ModelResult:
    """Measures a model, unless the process finds that it is on the machine of an earlier result."""
    machine: Machine | None = None
    try:
        with WorkerProcess.started(work, job) as worker:
            while True:
                kind, content = worker.receive()
                if kind == "machine":
                    machine = content
                    if (known := _earlier(kept, job, content)) is not None:
                        return known
                    worker.connection.send(True)
                elif kind == "stage":
                    listener.stage(content)
                elif kind == "log":
                    listener.log(str(content))
                elif kind == "result":
                    result: ModelResult = content
                    return result
                elif kind == "error":
                    raise ConfigError(str(content))
                else:
                    raise ConfigError(_last_line(str(content)))
    except ConfigError as error:
        if machine is None:  # the back end is at fault, not the model
            raise
        return _failed(job, machine, str(error))


def _earlier(kept: Sequence[ModelResult], job: Job, machine: Machine) -> ModelResult | None:
    wanted = _failed(job, machine, "").key
    return next((each for each in kept if each.key == wanted and not each.failure), None)


def _failed(job: Job, machine: Machine, reason: str) -> ModelResult:
    return ModelResult(
        model=job.model,
        target=job.target,
        settings=job.settings,
        machine=machine,
        when=datetime.datetime.now(datetime.UTC).date().isoformat(),
        command=job.command,
        failure=reason,
    )


def _last_line(trace: str) -> str:
    lines = [line for line in trace.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason was given"
