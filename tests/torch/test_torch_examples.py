"""The example trains, in every mode."""

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("mode", ["auto", "bf16", "fp16", "fp32"])
def test_the_example_learns(mode, capsys):
    main = runpy.run_path(str(EXAMPLES / "pytorch_loop.py"))["main"]
    assert main(["--mode", mode, "--epochs", "2"]) > 0.9
    assert "skipped steps 0" in capsys.readouterr().out


def test_the_benchmark_compares():
    compare = runpy.run_path(str(EXAMPLES / "benchmarks" / "pytorch_context.py"))
    for mode, clip in (("bf16", False), ("fp16", True)):
        given = compare["argparse"].Namespace(
            mode=mode, device="cpu", images=2, size=64, width=2, rounds=1, clip=clip
        )
        result = compare["compare"](given)
        assert result["ratio"] > 0
        assert result["amp_seconds"] > 0
