"""The script for a GPU runs, small, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "gpu_training.py"


@pytest.mark.slow
@pytest.mark.backend("jax", "torch")
@pytest.mark.parametrize("model", ["resnet152", "gpt"])
def test_rows_are_measured_apart(model, tmp_path):
    backend, path = os.environ["KERAS_BACKEND"], tmp_path / "gpu.json"
    rows = ["float32, TF32 off", "deepseek_hpf"]
    options = ["--tiny", "--rounds", "2", "--time-budget", "3", "--json", str(path)]
    choice = ["--backends", backend, "--models", model, "--rows", *rows]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, *choice],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DEEPSEEK_HPF_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert [each["row"] for each in found] == rows
    for each in found:
        assert "failure" not in each, each
        assert each["backend"] == backend
        assert len(each["seconds"]) == 2
        assert each["examples_per_second"] > 0
        assert (each["peak_memory"] or 0) > 0 or backend == "torch"
    assert done.stdout.count("examples/s") == 2
