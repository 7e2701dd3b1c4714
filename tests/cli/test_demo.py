"""`hpf demo`: what cannot be is one line; what can be is measured, shown and written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_hpf.cli.main import run
from deepseek_hpf.demo import front


def hpf(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(["demo", *arguments])
    return stopped.value.code


@pytest.mark.pure
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "`epochs` must be at least 1. Received: epochs=0"),
        (["--batch-size", "-3"], "`batch_size` must be at least 1. Received: batch_size=-3"),
        (["--seed", "-1"], "Received: seed=-1"),
        (["--policy", "mixed_bfloat17"], "mixed_bfloat17"),
        (["--config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(front, "compare", None)
    assert hpf(*arguments, "--output", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") <= 3
    assert not (tmp_path / "out").exists()


@pytest.mark.pure
def test_an_output_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "compare", None)
    (tmp_path / "file").write_text("")
    assert hpf("--output", str(tmp_path / "file")) == 2
    assert "The output folder cannot be written" in capsys.readouterr().err


@pytest.mark.pure
@pytest.mark.parametrize(
    ("module", "extra"), [("matplotlib", "report"), ("jinja2", "report"), ("sklearn", "datasets")]
)
def test_missing_extras_are_named(module, extra, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(front, "compare", None)
    monkeypatch.setitem(sys.modules, module, None)
    assert hpf("--output", str(tmp_path)) == 2
    assert f"deepseek_hpf[{extra}]" in capsys.readouterr().err


@pytest.mark.pure
def test_files_are_written_and_named(capsys, monkeypatch, tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
    from made_up import comparison

    monkeypatch.setattr(front, "compare", lambda settings, listener: comparison())
    run_demo_ended = _run_quietly(["demo", "--output", str(tmp_path / "deep" / "out")])
    assert run_demo_ended == 0
    assert {path.name for path in (tmp_path / "deep" / "out").iterdir()} == {
        "loss.png",
        "report.html",
        "results.json",
    }
    shown = capsys.readouterr().out
    for text in ("Seconds per step", "mixed_float16", "report.html", "bit for bit"):
        assert text in shown


def _run_quietly(arguments: list[str]) -> int:
    try:
        run(arguments)
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    """As a user starts it; on TensorFlow in full, elsewhere shorter."""
    full = os.environ["KERAS_BACKEND"] == "tensorflow"
    code = "from deepseek_hpf.cli.main import run; run()"
    command = [sys.executable, "-c", code, "demo", "--output", str(tmp_path)]
    done = subprocess.run(
        command if full else [*command, "--epochs", "3"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DEEPSEEK_HPF_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    least = 0.97 if full else 0.9
    for name in ("baseline", "policy"):
        assert results[name]["epochs"][-1]["test_accuracy"] >= least
    weights = {results[name]["start"]["initial_weights"] for name in ("baseline", "policy")}
    assert len(weights) == 1
    assert results["policy"]["skipped_steps"] == 0
