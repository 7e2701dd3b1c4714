"""Models one after the other: what is kept, what a death costs, what is not measured again."""

import os
import signal

import pytest
from made_up_results import machine, result

from deepseek_hpf.bench import runs
from deepseek_hpf.bench.job import Job
from deepseek_hpf.bench.records import BenchSettings, Stage
from deepseek_hpf.bench.results_file import read_results
from deepseek_hpf.bench.runs import run_all
from deepseek_hpf.errors import ConfigError

pytestmark = pytest.mark.pure


def no_model():
    return None


def no_batch(model):
    return ()


def job(name: str, **changes: object) -> Job:
    target = f"module:{name.lower()}"
    return Job(model=name, target=target, make_model=no_model, make_batch=no_batch, **changes)


class Recorder:
    """A listener."""

    def __init__(self):
        self.begun, self.stages, self.lines, self.ended = [], [], [], []

    def begin(self, job):
        self.begun.append(job.model)

    def stage(self, stage):
        self.stages.append(stage)

    def log(self, line):
        self.lines.append(line)

    def end(self, result, *, measured):
        self.ended.append((result.model, result.failure, measured))


def act(connection, job, stderr_path):
    """Plays a measurement; the model's name says what befalls it."""
    if job.model == "no back end":
        connection.send(("error", "install a back end"))
        return
    connection.send(("machine", machine()))
    try:
        connection.recv()
    except EOFError:
        return  # it is known already
    connection.send(("stage", Stage(text="building", done=0.5)))
    connection.send(("log", "WARNING: a line"))
    if job.model == "killed":
        with open(stderr_path, "w") as file:
            file.write("last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if job.model == "wrong":
        connection.send(("error", "expected a compiled model"))
    elif job.model == "bug":
        connection.send(("crash", "Traceback\n  line\nZeroDivisionError: division by zero\n"))
    else:
        connection.send(("result", result(job.model, settings=job.settings)))


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(runs, "work", act)


def test_a_model_that_fails_costs_its_own_row():
    recorder = Recorder()
    found = run_all([job("A"), job("killed"), job("wrong"), job("bug"), job("B")], recorder)
    assert [each.model for each in found] == ["A", "killed", "wrong", "bug", "B"]
    reasons = [each.failure for each in found]
    assert reasons[0] == reasons[4] == ""
    assert "with 'last words'" in reasons[1]
    assert "exit code -9" in reasons[1]
    assert reasons[2] == "expected a compiled model"
    assert reasons[3] == "ZeroDivisionError: division by zero"
    assert {each.machine.backend for each in found} == {"tensorflow"}
    assert recorder.begun == [each.model for each in found]
    assert recorder.stages[0] == Stage(text="building", done=0.5)
    assert recorder.lines[0] == "WARNING: a line"


def test_a_back_end_that_is_not_there_ends_it():
    with pytest.raises(ConfigError, match=r"^install a back end$"):
        run_all([job("no back end"), job("A")], Recorder())


def test_what_is_measured_is_kept_at_once_and_not_measured_again(tmp_path):
    path = tmp_path / "results.jsonl"
    with pytest.raises(ConfigError):
        run_all([job("A"), job("no back end")], Recorder(), path)
    assert [each.model for each in read_results(path)] == ["A"]
    recorder = Recorder()
    run_all([job("A"), job("B")], recorder, path)
    assert recorder.ended == [("A", "", False), ("B", "", True)]
    assert [each.model for each in read_results(path)] == ["A", "B"]


def test_what_failed_or_was_measured_otherwise_is_measured_again(tmp_path):
    path = tmp_path / "results.jsonl"
    run_all([job("A"), job("wrong")], Recorder(), path)
    recorder = Recorder()
    other = job("A", settings=BenchSettings(batch_size=4))
    run_all([other, job("wrong"), job("A")], recorder, path)
    assert [measured for *_, measured in recorder.ended] == [True, True, False]
    kept = [(each.model, each.settings.batch_size) for each in read_results(path)]
    assert kept == [("A", 16), ("A", 4), ("wrong", 16)]
