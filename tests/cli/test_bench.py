"""`hpf bench`: what cannot be is one line; what can be is measured, shown and written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from deepseek_hpf.bench import front
from deepseek_hpf.bench.suite import SUITE
from deepseek_hpf.cli.main import run

MODELS = """
import keras

def create_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model

def not_compiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
"""


def hpf(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(["bench", *arguments])
    return stopped.value.code or 0


@pytest.fixture
def models(tmp_path, monkeypatch):
    (tmp_path / "bench_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.pure
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of MODULE:FUNCTION, --suite and --from. Received: none."),
        (["a:b", "--suite"], "Received: MODULE:FUNCTION and --suite."),
        (["--suite", "--models", "resnet51"], 'Did you mean "resnet50"?'),
        (["--suite", "--models", ","], "Expected models of the suite: resnet50, "),
        (["a:b", "--models", "mlp"], "Expected --models with --suite."),
        (["--suite", "--data", "a.npz"], "Expected --data with MODULE:FUNCTION."),
        (["--from", "a", "--results", "b"], "Expected --results with MODULE:FUNCTION or --suite"),
        (["--from", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--suite", "--rounds", "0"], "--rounds"),
        (["--suite", "--time-budget", "0"], "--time-budget"),
        (["--suite", "--markdown", "no/where/B.md"], "a folder that is there"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(front, "run_all", None)
    assert hpf(*arguments) == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in error


@pytest.mark.pure
def test_a_plot_needs_the_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(front, "run_all", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert hpf("--suite", "--plot", str(tmp_path / "a.png")) == 2
    assert "deepseek_hpf[report]" in capsys.readouterr().err


@pytest.mark.pure
def test_jobs_and_command_are_what_was_asked_for(monkeypatch, tmp_path):
    asked = {}

    def run_bench(jobs, outputs, console):
        asked.update(jobs=jobs, outputs=outputs)

    monkeypatch.setattr(front, "run_bench", run_bench)
    hpf("--suite", "--models", "gpt,mlp", "--batch-size", "8", "--markdown", "B.md")
    assert [job.target for job in asked["jobs"]] == [SUITE[name].target for name in ("gpt", "mlp")]
    assert {job.settings.batch_size for job in asked["jobs"]} == {8}
    assert asked["jobs"][0].command == "hpf bench --suite --models gpt,mlp --batch-size 8"
    assert str(asked["outputs"].markdown) == "B.md"
    hpf("m:f", "--time-budget", "30")
    (job,) = asked["jobs"]
    assert (job.model, job.target) == ("m:f", "m:f")
    assert job.command == "hpf bench m:f --time-budget 30"


@pytest.mark.pure
def test_results_of_several_files_are_one_page(tmp_path, monkeypatch, capsys):
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench"))
    from made_up_results import machine, result

    from deepseek_hpf.bench.results_file import write_results

    monkeypatch.chdir(tmp_path)
    write_results("a.jsonl", [result("A"), result("B")])
    write_results("b.jsonl", [result("A", machine=machine("jax"))])
    assert hpf("--from", "a.jsonl", "--from", "b.jsonl", "--markdown", "B.md") == 0
    page = (tmp_path / "B.md").read_text()
    assert "`hpf bench --from a.jsonl --from b.jsonl --markdown B.md`" in page
    assert "Keras on JAX" in page
    assert "Geometric mean over 2 models" in capsys.readouterr().out
    write_results("empty.jsonl", [])
    assert hpf("--from", "empty.jsonl") == 2
    assert "holds no result" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_compiled", "returns a compiled model"),
        ("nothing", 'has no attribute "nothing"'),
    ],
)
def test_a_factory_that_is_none_is_an_error(function, message, models, capsys):
    assert hpf(f"bench_models:{function}") == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_and_its_data_from_beginning_to_end(models):
    rng = np.random.default_rng(0)
    np.savez(models / "d.npz", x=rng.normal(size=(9, 4)), y=rng.integers(0, 3, 9))
    code = "from deepseek_hpf.cli.main import run; run()"
    files = ["--json", "a.json", "--markdown", "B.md", "--plot", "c.png", "--results", "r.jsonl"]
    options = ["--data", "d.npz", "--batch-size", "5", "--rounds", "2", "--time-budget", "5"]
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", "bench_models:create_model", *options, *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=models,
        env={**os.environ, "DEEPSEEK_HPF_CACHE": str(models / "cache"), "COLUMNS": "160"},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (figures,) = json.loads((models / "a.json").read_text())["models"]
    assert figures["input_shape"] == "5 × 4"  # noqa: RUF001
    ours = next(each for each in figures["contenders"] if each["name"] == "deepseek_hpf")
    assert ours["failure"] == ""
    assert ours["tuning_seconds"] > 0
    assert figures["figures"]["contenders"]["deepseek_hpf"]["over_float32"]["median"] > 0
    for name in ("B.md", "c.png", "r.jsonl"):
        assert (models / name).stat().st_size > 500
