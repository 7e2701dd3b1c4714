"""`hpf estimate` and `hpf batch-size`: what cannot be is one line, what can is a table or JSON."""

import json
import os
import subprocess
import sys

import pytest

from deepseek_hpf.cli.main import run

MODELS = """
import keras

def create_model():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32), keras.layers.Dense(8)])
    model.compile("adam", "mse")
    return model
"""


def hpf(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(list(arguments))
    return stopped.value.code or 0


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "estimated_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_float32_beside_a_policy(models, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    target = "estimated_models:create_model"
    assert hpf("estimate", target, "--batch-size", "32", "--policy", "mixed_bfloat16") == 0
    text = capsys.readouterr().out
    for words in ("32 rows", "float32", "deepseek_hpf, mixed_bfloat16", "total over float32's"):
        assert words in text
    (models / "p.json").write_text('{"policy": "mixed_bfloat16", "kernels": false}')
    assert hpf("estimate", target, "--policy", "p.json", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["float32", "deepseek_hpf, mixed_bfloat16"]
    for each in found.values():
        assert each["parameters"] == 4 * (64 * 32 + 32 + 32 * 8 + 8)
        assert each["total"] > each["parameters"] + each["slots"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["estimate", "nowhere:f"], "no module named"),
        (["estimate", "estimated_models:create_model", "--policy", "bf16"], "Did you mean"),
        (["estimate", "estimated_models:create_model", "--data", "no.npz"], "no.npz"),
        (["batch-size", "nowhere:f"], "no module named"),
        (["batch-size", "estimated_models:create_model", "--objective", "x"], "fits, throughput"),
        (["batch-size", "estimated_models:create_model", "--policies", "bf16"], "policy"),
        (["batch-size", "estimated_models:create_model", "--json", "no/a.json"], "a folder that"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(models, arguments, message, capsys):
    assert hpf(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_batch_size_from_beginning_to_end(models):
    code = "from deepseek_hpf.cli.main import run; run()"
    options = ["--policies", "float32", "--ceiling", "32", "--objective", "throughput"]
    options += ["--json", "a.json", "--memory", str(2**31)]
    done = subprocess.run(
        [sys.executable, "-c", code, "batch-size", "estimated_models:create_model", *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=models,
        env={**os.environ, "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "best" in done.stdout
    found = json.loads((models / "a.json").read_text())
    assert found["limit"] == 2**31
    assert [each["batch_size"] for each in found["trials"]] == [8, 16, 32]
    assert all(each["fits"] and each["peak"] > 0 for each in found["trials"])
