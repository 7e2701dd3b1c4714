"""The process that tries a model: what dies for want of memory is this one."""

import contextlib
import logging
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError, told
from deepseek_hpf.lazy import import_with_backend
from deepseek_hpf.worker_process import LogSender, send_stderr_to

# As TensorFlow, XLA, PyTorch and C++ say it.
_WANT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "ResourceExhausted", "ut of memory", "OutOfMemory",
                   "can't allocate memory", "bad_alloc", "MemoryError", "OOM when")  # fmt: skip


def work(connection: Connection, job: Any, stderr_path: str) -> None:
    """Makes the model, and trains it with each batch size that it is sent; the process's body.

    It sends `("started", (bytes that the process has, whether it trains on the CPU))` and `("made",
    None)`; then for each `("step", rows)` a `StepTrial` and for each `("estimate", rows)` a
    `MemoryEstimate`, under the same word; in place of any of these `("full", reason)` or `("error",
    text)`. It ends with None.

    Args:
        connection: To the parent.
        job: A `TrialJob`.
        stderr_path: File that takes the standard error.
    """
    send_stderr_to(stderr_path)
    logging.getLogger("deepseek_hpf").addHandler(LogSender(connection))
    _be_the_first_to_go()
    try:
        _serve(connection, job)
    except (ConfigError, MissingBackendError, PrecisionError) as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the parent is gone, or has what it wants
    except Exception as error:  # noqa: BLE001 - the parent reports it
        traceback.print_exc()
        connection.send(("full" if is_want_of_memory(error) else "error", told(error)))
        sys.exit(1)


def _serve(connection: Connection, job: Any) -> None:
    trials = import_with_backend("deepseek_hpf.memory.step_trial").StepTrials()
    estimating = import_with_backend("deepseek_hpf.memory.estimating")
    connection.send(("started", (trials.before, trials.on_cpu)))
    trials.make(job)
    connection.send(("made", None))
    while (asked := connection.recv()) is not None:
        kind, rows = asked
        if kind == "estimate":
            connection.send((kind, estimating.estimate(trials.model, rows, sample=job.sample)))
        else:
            connection.send((kind, trials.step(rows)))


def is_want_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice.

    Args:
        error: Of any framework.

    Returns:
        True or False.

    Example:
        >>> is_want_of_memory(MemoryError()), is_want_of_memory(ValueError("shape"))
        (True, False)
    """
    text = f"{type(error).__name__}: {error}"
    return any(words in text for words in _WANT_OF_MEMORY)


def _be_the_first_to_go() -> None:
    """Has Linux kill this process before any other if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
