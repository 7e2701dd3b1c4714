"""The examples run as they are called."""

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
