"""Two processes in turn: what they send arrives, what befalls them is said in a line."""

import os
import signal
import time

import pytest
from made_up import result, start

from deepseek_hpf.demo import comparison
from deepseek_hpf.demo.comparison import BASELINE, POLICY, compare
from deepseek_hpf.demo.records import EpochDone, RunSettings, RunStart, StepDone
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


class Recorder:
    """A listener."""

    def __init__(self):
        self.events, self.lines = [], []

    def event(self, run, event):
        self.events.append((run, event))

    def log(self, run, line):
        self.lines.append((run, line))


def act(connection, settings, stderr_path):
    """Plays a training; the data set's name says what befalls it."""
    baseline = settings.policy is None
    if settings.dataset == "wrong" and not baseline:
        connection.send(("error", "`policy` is wrong"))
        return
    connection.send(("event", start("float32" if baseline else "mixed_bfloat16")))
    for epoch in range(settings.epochs):
        assert connection.recv()
        if settings.dataset == "killed" and not baseline:
            with open(stderr_path, "w") as file:
                file.write("some words\nlast words\n\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if settings.dataset == "bug":
            connection.send(("crash", "Traceback: division by zero"))
            return
        connection.send(("log", "WARNING: a line"))
        connection.send(("event", StepDone(epoch=epoch, step=0, loss=1.0)))
        done = EpochDone(
            epoch=epoch, loss=1.0, test_loss=1.0, test_accuracy=0.5, step_seconds=(time.time(),)
        )
        connection.send(("event", done))
    connection.send(("result", result("float32", 0.2 if baseline else 0.1)))


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(comparison, "work", act)


def test_the_runs_take_turns_and_swap_who_goes_first():
    recorder = Recorder()
    got = compare(RunSettings(policy="auto", epochs=3), recorder)
    assert got.speed == pytest.approx(2.0)
    epochs = [(run, event.epoch) for run, event in recorder.events if isinstance(event, EpochDone)]
    assert epochs == [
        (BASELINE, 0),
        (POLICY, 0),
        (POLICY, 1),
        (BASELINE, 1),
        (BASELINE, 2),
        (POLICY, 2),
    ]
    assert sum(isinstance(event, RunStart) for _, event in recorder.events) == 2
    assert recorder.lines[0] == (BASELINE, "WARNING: a line")
    times = [event.step_seconds[0] for _, event in recorder.events if isinstance(event, EpochDone)]
    assert times == sorted(times)


def test_an_error_of_the_user_comes_as_it_is():
    with pytest.raises(ConfigError, match=r"^`policy` is wrong$"):
        compare(RunSettings(policy="nonsense", dataset="wrong"), Recorder())


def test_a_killed_process_is_reported_with_its_last_words():
    with pytest.raises(ConfigError, match=r"before its time, with 'last words'.*exit code -9"):
        compare(RunSettings(policy="auto", dataset="killed"), Recorder())


def test_an_error_of_ours_comes_with_its_trace():
    with pytest.raises(RuntimeError, match="division by zero"):
        compare(RunSettings(policy="auto", dataset="bug"), Recorder())
