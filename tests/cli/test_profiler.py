"""`hpf_profiler`: files, exit codes, errors of a line; light until it works."""

import json
import subprocess
import sys

import numpy as np
import pytest

from deepseek_hpf.cli.profiler import run
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.report_json import to_json

MODULE = """
def small():
    import keras
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="fc")], name="small")
    model.compile("sgd", "mse")
    return model
def subclassed():
    import keras
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = keras.layers.Dense(2)
        def call(self, x):
            return self.fc(x)
    model = Mine()
    model.compile("sgd", "mse")
    return model
def pair():
    import keras
    a, b = keras.Input((4,)), keras.Input((5,))
    joined = keras.layers.Concatenate()([a, b])
    outputs = [keras.layers.Dense(2)(joined), keras.layers.Dense(1)(joined)]
    model = keras.Model([a, b], outputs)
    model.compile("sgd", ["mse", "mse"])
    return model
"""


def profiler(*arguments):
    with pytest.raises(SystemExit) as caught:
        run([str(argument) for argument in arguments])
    return caught.value.code or 0


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with a module in it, of which nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "user_profiled.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("user_profiled", None)


def test_it_writes_what_it_is_asked_for(here, capsys):
    code = profiler(
        "user_profiled:small", "--policy", "mixed_bfloat16", "--steps", 2,
        "--report", "r.html", "--json", "r.json", "--tensorboard", "logs",
    )  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert "small on " in out
    assert out.count("Written: ") == 3
    found = ProfileReport.from_json("r.json")
    assert (found.policy, found.steps) == ("mixed_bfloat16", 2)
    assert found.census.cast_count > 0
    assert "<!doctype html>" in (here / "r.html").read_text(encoding="utf-8")
    assert list((here / "logs").iterdir())


def test_conflicts_fail_only_where_that_is_asked_for(here):
    arguments = ["user_profiled:small", "--policy", "mixed_float16"]
    assert profiler(*arguments) == 0
    assert profiler(*arguments, "--fail-on", "conflicts") == 1
    assert profiler("user_profiled:small", "--fail-on", "conflicts") == 0


def test_a_configuration_is_applied(here):
    """Its rules, and the float32 output that `apply_policy` brings."""
    (here / "c.json").write_text('{"policy": "mixed_bfloat16"}')
    assert profiler("user_profiled:small", "--config", "c.json", "--json", "r.json") == 0
    found = ProfileReport.from_json("r.json")
    assert {row.path: row.compute_dtype for row in found.layers}["fc"] == "float32"


def test_data_come_from_the_file(here):
    rows = np.arange(60, dtype="float32").reshape(10, 6)
    np.savez("d.npz", x=rows, y=rows[:, :3], sample_weight=np.ones(10))
    arguments = ["user_profiled:small", "--data", "d.npz", "--batch-size", 4, "--json", "r.json"]
    assert profiler(*arguments) == 0
    (row,) = ProfileReport.from_json("r.json").ranges_of("fc", "input")
    assert (row.size, row.largest) == (24, 23.0)


@pytest.mark.slow
def test_several_inputs_and_outputs_are_numbered(here):
    arrays = {"x1": np.ones((4, 5)), "x0": np.ones((4, 4)), "y0": np.ones((4, 2))}
    np.savez("d.npz", **arrays, y1=np.ones((4, 1)))
    assert profiler("user_profiled:pair", "--data", "d.npz") == 0
    assert profiler("user_profiled:pair") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["user_profiled:nothing"], "has no attribute"),
        (["nowhere:f"], "no module named 'nowhere'"),
        (["user_profiled:small", "--data", "none.npz"], "No such file"),
        (["user_profiled:small", "--data", "."], "is a folder"),
        (["user_profiled:small", "--data", "user_profiled.py"], "np.savez"),
        (["user_profiled:small", "--data", "z.npz"], "Received one with 'z'"),
        (["user_profiled:small", "--data", "o.npz"], "np.savez"),
        (["user_profiled:small", "--data", "wide.npz"], "shape"),
        (["user_profiled:small", "--policy", "mixed_float12"], "mixed_float12"),
        (["user_profiled:small", "--config", "none.json"], "none.json"),
        (["user_profiled:small", "--report", "no/where/r.html"], "folder that is there"),
        (["user_profiled:small", "--json", "."], "expected a file"),
        (["user_profiled:subclassed"], "Give a batch of data"),
    ],
)
def test_what_the_user_can_put_right_is_short(here, capsys, arguments, words):
    np.savez("z.npz", z=np.ones(3))
    np.savez("o.npz", x=np.array([{}], dtype=object), y=np.ones(1))
    np.savez("wide.npz", x=np.ones((4, 9), "float32"), y=np.ones((4, 3), "float32"))
    assert profiler(*arguments) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert words in error
    assert "Traceback" not in error


@pytest.mark.pure
def test_two_profiles_are_compared(tmp_path, capsys):
    for name, policy in (("a", "float32"), ("b", "mixed_bfloat16")):
        made = ProfileReport("m", "jax", policy, 1)
        (tmp_path / f"{name}.json").write_text(to_json(made), encoding="utf-8")
    assert profiler("diff", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "mixed_bfloat16" in capsys.readouterr().out
    assert profiler("diff", tmp_path / "a.json", tmp_path / "a.json") == 0
    assert "No difference." in capsys.readouterr().out
    (tmp_path / "bad.json").write_text(json.dumps({"version": 1}))
    assert profiler("diff", tmp_path / "a.json", tmp_path / "bad.json") == 2
    assert "no profile: model" in capsys.readouterr().err
    (tmp_path / "latin.json").write_bytes(b"\xff")
    assert profiler("diff", tmp_path / "a.json", tmp_path / "latin.json") == 2


@pytest.mark.pure
@pytest.mark.parametrize("arguments", [["--help"], ["diff", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from deepseek_hpf.cli.profiler import run\n"
        f"try: run({arguments})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'keras', 'pydantic', 'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "print('heavy:', *sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("heavy:")
    assert "Usage: hpf_profiler" in done.stdout


@pytest.mark.pure
@pytest.mark.parametrize(
    "arguments", [["a:b", "c"], ["--nonsense"], ["diff", "one"], ["a:b", "--steps", "0"]]
)
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    assert profiler(*arguments) == 2
    assert "Usage: hpf_profiler" in capsys.readouterr().err
