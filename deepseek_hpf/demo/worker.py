"""A training in a process of its own, which talks to its parent through a pipe."""

import logging
import sys
import traceback
from multiprocessing.connection import Connection

from deepseek_hpf.demo.records import RunSettings
from deepseek_hpf.errors import ConfigError, MissingBackendError, PrecisionError
from deepseek_hpf.lazy import import_with_backend
from deepseek_hpf.worker_process import LogSender, send_stderr_to

# What a worker sends: ("log", text), ("event", Event), ("result", RunResult), ("error", text),
# ("crash", traceback). What it is sent before each epoch: True.
Message = tuple[str, object]


def work(connection: Connection, settings: RunSettings, stderr_path: str) -> None:
    """Trains, and sends what happens; the body of the process.

    Args:
        connection: To the parent.
        settings: Of the run.
        stderr_path: File that takes the standard error, which frameworks write to at their start.
    """
    send_stderr_to(stderr_path)
    logger = logging.getLogger("deepseek_hpf")
    logger.addHandler(LogSender(connection))
    try:
        training = import_with_backend("deepseek_hpf.demo.training")
        result = training.train(
            settings, lambda event: connection.send(("event", event)), connection.recv
        )
        connection.send(("result", result))
    except (ConfigError, MissingBackendError, PrecisionError) as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError):
        sys.exit(1)  # the parent is gone
    except Exception:  # noqa: BLE001 - the parent reports it
        connection.send(("crash", traceback.format_exc()))
        sys.exit(1)
