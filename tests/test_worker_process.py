"""A process for a piece of work: messages arrive, its end is told, the environment is put back."""

import os
import signal
import sys

import pytest

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.worker_process import (
    LogSender,
    WorkerProcess,
    quiet_environment,
    send_stderr_to,
)

pytestmark = pytest.mark.pure


def act(connection, argument, stderr_path):
    send_stderr_to(stderr_path)
    connection.send(("echo", argument))
    connection.send(("environment", os.environ["TF_FORCE_GPU_ALLOW_GROWTH"]))
    connection.recv()
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_is_sent_arrives_and_a_death_is_told(monkeypatch):
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    with WorkerProcess.started(act, {"a": 1}) as worker:
        assert worker.receive() == ("echo", {"a": 1})
        assert worker.receive() == ("environment", "true")
        worker.connection.send(True)
        with pytest.raises(ConfigError, match=r"with 'last words'.*Received: exit code -9"):
            worker.receive()


def test_a_process_that_is_not_waited_for_is_ended():
    with WorkerProcess.started(act, None) as worker:
        process = worker.process
        assert process.is_alive()
    assert not process.is_alive()


def test_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    before = dict(os.environ)
    with quiet_environment():
        assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
        assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert dict(os.environ) == before


def test_warnings_are_sent_and_lower_levels_are_not():
    import logging

    sent = []

    class Pipe:
        send = sent.append

    logger = logging.getLogger("test_worker_process")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(LogSender(Pipe()))
    logger.info("not this")
    logger.warning("%s of %d", "one", 2)
    assert sent == [("log", "WARNING: one of 2")]
