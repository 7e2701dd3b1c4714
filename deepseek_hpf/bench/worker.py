"""The process that measures one model: a clean start for each, and a death that costs one row."""

import logging
import sys
import traceback
from multiprocessing.connection import Connection

from deepseek_hpf.bench.job import Job
from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError
from deepseek_hpf.lazy import import_with_backend
from deepseek_hpf.worker_process import LogSender, send_stderr_to


def work(connection: Connection, job: Job, stderr_path: str) -> None:
    """Measures, and sends what happens; the body of the process.

    It sends `("machine", Machine)` as soon as the back end stands, and waits for a word to go on;
    then `("stage", Stage)`, `("log", line)`, and at the end `("result", ModelResult)`, `("error",
    text)` or `("crash", traceback)`.

    Args:
        connection: To the parent.
        job: What to measure.
        stderr_path: File that takes the standard error, which frameworks write to at their start.
    """
    send_stderr_to(stderr_path)
    logging.getLogger("deepseek_hpf").addHandler(LogSender(connection))
    try:
        measuring = import_with_backend("deepseek_hpf.bench.measuring")
        connection.send(("machine", measuring.machine_at_hand()))
        connection.recv()
        result = measuring.measure(job, lambda stage: connection.send(("stage", stage)))
        connection.send(("result", result))
    except (ConfigError, MissingBackendError, PrecisionError) as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the parent is gone
    except Exception:  # noqa: BLE001 - the parent reports it
        connection.send(("crash", traceback.format_exc()))
        sys.exit(1)
