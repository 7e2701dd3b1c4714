"""`hpf events`: tables, JSON, outputs by their ending, errors of a line; light until it works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_hpf.cli.main import run

pytestmark = pytest.mark.pure
START = {
    "kind": "start",
    "step": 0,
    "model": "net",
    "policy": "mixed_float16",
    "controller": "threshold",
    "blocks": {"stem[bold]": ["stem/conv"], "head": ["head"]},
    "precision": {"stem[bold]": "base", "head": "base"},
}
LINES = [
    START,
    {"kind": "window", "step": 50, "steps": 50, "loss": "NaN", "skipped": 1, "step_seconds": 0.1},
    {"kind": "overflow", "step": 49, "cause": "data", "samples": [3, 7], "reason": "NaN in x"},
    {
        "kind": "promote",
        "step": 50,
        "reason": "it overflowed",
        "block": "stem[bold]",
        "precision": {"stem[bold]": "float32", "head": "base"},
    },
    {"kind": "window", "step": 100, "steps": 50, "loss": 1.5, "step_seconds": 0.3},
]


def hpf_events(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(["events", *map(str, arguments)])
    return caught.value.code or 0


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    path = Path("events.jsonl")
    path.write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    return path


def test_it_shows_the_decisions_with_their_reasons_and_a_summary(file, capsys):
    assert hpf_events(file) == 0
    out = capsys.readouterr().out
    for words in (
        "net, mixed_float16, controller threshold, steps 0 to 100",
        "100 steps in 20.00 s, 1 skipped. 1 switch of the precision, 2 plans.",
        "promoted to float32",
        "stem[bold]",
        "it overflowed",
        "NaN in x",
        "50 %, 15.00 s",
        "100 %, 20.00 s",
    ):
        assert words in out


def test_outputs_go_by_their_ending(file, capsys):
    assert hpf_events(file, "-o", "t.png", "--output", "t.html") == 0
    assert "Written: t.png\nWritten: t.html\n" in capsys.readouterr().out
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")
    assert Path("t.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_json_is_for_programs(file, capsys):
    assert hpf_events(file, "--json", "-o", "t.html") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out, parse_constant=pytest.fail)
    assert found["summary"]["switches"] == 1
    assert found["summary"]["stays"]["stem[bold]"]["float32"] == {"steps": 50, "seconds": 15.0}
    assert [event["kind"] for event in found["events"]] == ["overflow", "promote"]
    assert found["events"][0]["samples"] == [3, 7]
    assert captured.err == "Written: t.html\n"


@pytest.mark.parametrize(
    ("given", "steps"), [("50:", (50, 100)), (":50", (0, 50)), ("20:60", (20, 60)), (":", (0, 100))]
)
def test_a_range_of_steps(file, capsys, given, steps):
    assert hpf_events(file, "--json", "--step-range", given) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["first_step"], found["end_step"]) == steps
    assert found["summary"]["steps"] == steps[1] - steps[0]


def test_the_last_rows_are_shown(file, capsys):
    assert hpf_events(file, "--rows", 1) == 0
    out = capsys.readouterr().out
    assert "it overflowed" in out
    assert "NaN in x" not in out
    assert "after 1 earlier" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl"], "missing.jsonl: cannot be read: No such file or directory."),
        (["events.jsonl", "-o", "t.gif"], "expected a file that ends in .png or .html"),
        (["events.jsonl", "-o", "no/t.png"], "expected a file in a folder that is there"),
        (["events.jsonl", "--step-range", "5"], "--step-range: expected FIRST:END"),
        (["events.jsonl", "--step-range", "-1:5"], "--step-range: expected FIRST:END"),
        (["events.jsonl", "--step-range", "100:"], "the run's steps, which are 0 to 100"),
        (["train.py"], 'train.py, line 1: expected an event, as a JSON object. Received: "import'),
    ],
)
def test_errors_are_a_line(file, capsys, arguments, told):
    Path("train.py").write_text("import keras\n")
    assert hpf_events(*arguments) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_missing_package_is_named_before_the_work(file, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert hpf_events(file, "-o", "t.png") == 2
    assert "pip install 'deepseek_hpf[report]'" in capsys.readouterr().err


def test_no_framework_is_imported(file):
    code = (
        "import sys\n"
        "from deepseek_hpf.cli.main import run\n"
        "try: run(['events', 'events.jsonl', '-o', 't.html'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('heavy:', *sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy:")
