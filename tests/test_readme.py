"""What the README shows works."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import deepseek_hpf as hpf
from deepseek_hpf.bench.results_file import read_results
from deepseek_hpf.bench.summary import summarize
from deepseek_hpf.cli.main import COMMANDS
from deepseek_hpf.config import PrecisionConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.mark.pure
def test_the_configuration_is_valid():
    for block in blocks("json"):
        assert PrecisionConfig.from_dict(json.loads(block)).rules


@pytest.mark.pure
def test_the_commands_are_there():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = {line.split()[1] for line in lines if line.startswith("hpf ")}
    assert commands
    assert commands <= COMMANDS.keys()


@pytest.mark.pure
def test_the_picture_and_its_figures_are_the_benchmarks():
    picture = re.search(r"!\[.+\]\((.+\.png)\)", README)[1]
    assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
    results = re.search(r"`hpf bench --from (\S+) --plot (\S+)`", README)
    assert results[2] == picture
    found = summarize(read_results(ROOT / results[1]))
    text = " ".join(README.split())
    assert f"is {found.over_float32:.2f} times as fast as Keras float32" in text
    assert f"{found.over_bfloat16:.2f} times as fast as Keras mixed_bfloat16" in text
    assert f"{found.over_best_peer:.2f} times as fast as the best peer" in text
    assert found.models == 10
    assert "Over the ten models" in text


@pytest.mark.slow
@pytest.mark.pure
def test_the_table_of_back_ends_is_what_the_tests_say():
    """They are collected anew: a feature whose tests are marked for fewer back ends shows."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "support_table.py"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = README.partition("<!-- support table -->\n")[2].partition("<!-- end -->")[0]
    assert shown == done.stdout


def create_model():
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.normal(size=(4, 3)).astype("float32"), rng.integers(0, 2, 4)


def test_the_code_trains(global_dtype_policy, capsys):
    names = {"create_model": create_model, "train": Batches()}
    exec(blocks("python")[0], names)
    assert len(names["overrides"].report.rows) >= 1
    assert "dense" in capsys.readouterr().out


@pytest.mark.slow
def test_the_code_tunes(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DEEPSEEK_HPF_CACHE", str(tmp_path))
    model = create_model()
    model.compile("sgd", "sparse_categorical_crossentropy")
    x, y = Batches()[0]
    names = {"hpf": hpf, "model": model, "x": x, "y": y}
    exec(blocks("python")[1], names)
    assert names["policy"].config == names["result"].config
    assert "float32" in capsys.readouterr().out
