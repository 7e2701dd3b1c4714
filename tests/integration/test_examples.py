"""The examples run as they are called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def call(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
@pytest.mark.pure
@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.py")), ids=lambda path: str(path.relative_to(EXAMPLES))
)
def test_every_example_explains_itself(path):
    done = call(str(path), "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout.lower()


@pytest.mark.slow
def test_train_resnet(tmp_path):
    done = call(
        "train_resnet.py",
        *("--epochs", "1", "--batch-size", "64", "--policy", "mixed_bfloat16", "--seed", "3"),
        *("--output", str(tmp_path / "out")),
        DEEPSEEK_HPF_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert "mixed_bfloat16" in done.stdout
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("controller", [(), ("--controller", "threshold")], ids=["fixed", "moved"])
def test_train_gpt(controller, tmp_path):
    done = call(
        "train_gpt.py",
        *("--epochs", "2", "--characters", "40000", "--policy", "mixed_bfloat16"),
        *("--prompt", "import ", "--write", "30", *controller),
    )
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout
    written = done.stdout[done.stdout.rindex("import ") :].rstrip("\n")
    assert len(written) <= len("import ") + 30
    assert ("precision_switches" in done.stdout) == bool(controller)


@pytest.mark.slow
@pytest.mark.backend("tensorflow", "torch")  # two minutes of compilation under JAX
def test_a_comparison_goes_on_where_it_was(tmp_path):
    def run(word, *more):
        done = call(
            "dynamic_comparison.py",
            *("--output", str(tmp_path / "runs.jsonl"), "--tasks", "gpt", "--seeds", "1"),
            *("--epochs", "1", "--contenders", word, *more),
        )
        assert done.returncode == 0, done.stderr
        rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
        lines = (tmp_path / "runs.jsonl").read_text(encoding="utf-8").splitlines()
        return [row.split(" | ")[0][2:] for row in rows[2:]], [json.loads(line) for line in lines]

    contenders, (first,) = run("Keras float32")
    assert contenders == ["Keras float32"]
    contenders, runs = run("bfloat16", "--events", str(tmp_path))
    assert [each["contender"] for each in runs] == contenders
    assert runs[0] == first
    dynamic = {each["contender"].partition(",")[0]: each for each in runs[2:]}
    assert list(dynamic) == ["static", "threshold", "adaptive"]
    assert dynamic["static"]["val_loss"] == dynamic["threshold"]["val_loss"]
    assert dynamic["static"]["switches"] == 0 < dynamic["adaptive"]["switches"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}
    assert len(list(tmp_path.iterdir())) == 4
    assert run("float32", "--table") == (contenders, runs)


@pytest.mark.slow
def test_float16_overflow(tmp_path):
    # The float16 products of oneDNN take minutes on some CPUs.
    done = call(
        "float16_overflow.py",
        *("--events", str(tmp_path / "events.jsonl")),
        TF_ENABLE_ONEDNN_OPTS="0",
    )
    assert done.returncode == 0, done.stderr
    rows = {line[:26].rstrip(): line[26:].split() for line in done.stdout.splitlines()[1:4]}
    wide, keras, dynamic = rows.values()
    assert float(wide[0]) < 0.05
    assert float(keras[3]) < 1e-3  # the scale has collapsed
    assert float(dynamic[0]) < 0.05  # 2.3 is a guess among ten digits
    # Of 355 images; float32 itself moves by up to 1.1 points with the last bits of its weights.
    assert float(dynamic[2].rstrip("%")) > float(wide[2].rstrip("%")) - 4
    assert float(dynamic[3]) >= 1024  # of 32768: it backs off where the scale itself was at fault
    assert int(dynamic[4]) < 30 < 800 < int(keras[4])  # of 900
    assert "overflows in the forward pass" in done.stdout
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").open()]
    assert kinds.count("overflow") == int(dynamic[4])
    assert "promote" in kinds


@pytest.mark.slow
def test_custom_training_loop():
    done = call("custom_training_loop.py", "--policy", "mixed_float16", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert "AutoGraph" not in done.stderr
    words = done.stdout.splitlines()[-1].split()
    assert float(words[words.index("accuracy") + 1].rstrip(",")) > 0.8
    assert words[-1] == "0"


@pytest.mark.slow
def test_transfer_learning():
    done = call("transfer_learning.py", "--policy", "mixed_bfloat16", "--epochs", "15")
    assert done.returncode == 0, done.stderr
    shares = [float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines()[-3:]]
    first, head, thawed = shares
    assert first > 90
    assert min(head, thawed) > 50  # 20 is a guess among five digits
    assert "body/conv1" in done.stdout
