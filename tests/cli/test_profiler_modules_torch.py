"""`hpf_profiler --criterion`: plain PyTorch modules; errors of a line, and no Keras."""

import json
import subprocess
import sys

import numpy as np
import pytest

from deepseek_hpf.cli.profiler import run

pytestmark = pytest.mark.backend("torch")

MODULE = """
import torch


class Net(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.stem = torch.nn.Linear(inputs, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, *parts):
        return self.head(torch.relu(self.stem(torch.cat(parts, 1))))


def net():
    torch.manual_seed(0)
    return Net(6)


def half():
    return torch.nn.Sequential(torch.nn.Linear(6, 3, dtype=torch.bfloat16))


def number():
    return 3


def error(output, labels):
    return (output.float() - labels).square().mean()
"""
CRITERION = ("--criterion", "profiled_nets:error")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a module and batches in it, of which nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "profiled_nets.py").write_text(MODULE)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 6)).astype("float32"), rng.normal(size=(20, 3)).astype("float32")
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "two.npz", x0=x[:, :2], x1=x[:, 2:], y=y)
    yield tmp_path
    sys.modules.pop("profiled_nets", None)


def profiler(*arguments):
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    return caught.value.code or 0


@pytest.mark.parametrize("data", ["one.npz", "two.npz"])
def test_a_module_is_profiled_under_a_policy(here, data):
    options = ("--data", data, "--policy", "mixed_bfloat16", "--json", "found.json")
    assert profiler("profiled_nets:net", *CRITERION, *options) == 0
    found = json.loads((here / "found.json").read_text())
    assert (found["model"], found["backend"], found["policy"]) == ("Net", "torch", "mixed_bfloat16")
    computed = {row["path"]: row["compute_dtype"] for row in found["layers"]}
    assert computed["stem"] == computed["head"] == "bfloat16"


def test_a_configuration_and_the_rows_count(here):
    rules = [{"layers": "head", "policy": "float32"}]
    (here / "precision.json").write_text(json.dumps({"policy": "mixed_bfloat16", "rules": rules}))
    options = ("--data", "one.npz", "--config", "precision.json", "--json", "found.json")
    assert profiler("profiled_nets:net", *CRITERION, *options, "--batch-size", "4") == 0
    found = json.loads((here / "found.json").read_text())
    computed = {row["path"]: row["compute_dtype"] for row in found["layers"]}
    assert (computed["stem"], computed["head"]) == ("bfloat16", "float32")
    inputs = [r for r in found["ranges"] if (r["path"], r["kind"]) == ("stem", "input")]
    assert inputs[0]["size"] == 4 * 6


def test_pages_and_differences_are_written(here, capsys):
    options = ("--data", "one.npz", "--json")
    assert profiler("profiled_nets:net", *CRITERION, *options, "before.json") == 0
    more = ("--policy", "mixed_bfloat16", "--report", "after.html")
    assert profiler("profiled_nets:net", *CRITERION, *options, "after.json", *more) == 0
    assert "<html" in (here / "after.html").read_text()
    capsys.readouterr()
    assert profiler("diff", "before.json", "after.json") == 0
    assert "stem" in capsys.readouterr().out


def test_conflicts_make_the_exit_code(here):
    options = (*CRITERION, "--data", "one.npz", "--fail-on", "conflicts")
    assert profiler("profiled_nets:net", *options) == 0
    # Autocast takes the float32 inputs; weights of bfloat16 without masters are a conflict.
    assert profiler("profiled_nets:half", *options, "--policy", "mixed_bfloat16") == 1
    assert profiler("profiled_nets:half", *options[:-2], "--policy", "mixed_bfloat16") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("profiled_nets:net", *CRITERION), "np.savez"),
        (("profiled_nets:number", *CRITERION, "--data", "one.npz"), "torch.nn.Module"),
        (("profiled_nets:net", "--data", "one.npz"), "Give its loss with --criterion"),
        (("profiled_nets:net", "--criterion", "profiled_nets:eror"), "--data"),
        (
            ("profiled_nets:net", "--criterion", "profiled_nets:eror", "--data", "one.npz"),
            '"error"',
        ),
        (("profiled_nets:net", *CRITERION, "--data", "two.npz", "--policy", "int8"), "float32"),
    ],
)
def test_what_the_user_can_put_right_is_a_line(here, capsys, arguments, words):
    assert profiler(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.slow
def test_it_needs_no_keras(here):
    code = (
        "import sys\n"
        "from deepseek_hpf.cli.profiler import run\n"
        f"try: run(['profiled_nets:net', *{CRITERION}, '--data', 'one.npz'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('heavy:', *sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy:")
