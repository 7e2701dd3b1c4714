"""`hpf check`: valid or not, and what the rules hit."""

import json
import sys
from pathlib import Path

import pytest

from deepseek_hpf.cli.main import run

FROZEN = Path(__file__).parents[1] / "data_files" / "precision-v1.json"


def check(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        run(["check", *map(str, arguments)])
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


@pytest.mark.pure
def test_a_valid_file_is_shown(capsys):
    code, out, err = check(capsys, FROZEN)
    assert (code, err) == (0, "")
    assert f"{FROZEN} is valid." in out.replace("\n", " ").replace("  ", " ")
    for word in ("stem*", "BatchNormalization", "activations: int8", "kernel: false"):
        assert word in out
    assert 'clipping: kind="global_norm", max_norm=1.0' in out
    assert "hits" not in out


@pytest.mark.pure
def test_patterns_are_not_taken_for_markup(capsys, tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"rules": [{"layers": "[bold]x[/bold]:smile:", "policy": null}]}')
    code, out, _ = check(capsys, path)
    assert code == 0
    assert "[bold]x[/bold]:smile:" in out
    assert "policy: null" in out


@pytest.mark.pure
def test_defaults_and_no_rules(capsys, tmp_path):
    path = tmp_path / "p.json"
    path.write_text("{}")
    code, out, _ = check(capsys, path)
    assert code == 0
    assert "at its default" in out
    assert "rule " not in out


@pytest.mark.pure
@pytest.mark.parametrize("content", ["", '{"polcy": 1}', '{"policy": 1, "kernels": 2, "x": 3}'])
def test_an_invalid_file_is_an_error_of_three_lines_at_most(capsys, tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(content)
    code, out, err = check(capsys, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}: ")
    assert 1 <= err.count("\n") <= 3


USER_MODULE = """
import keras
def create_model():
    layers = [keras.layers.Dense(2, name="a"), keras.layers.BatchNormalization(name="bn")]
    block = keras.Sequential(layers, name="decoder")
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, name="stem_1"), block])
def unbuilt():
    return keras.Sequential([keras.layers.Dense(3, name="stem_1")])
"""


def test_with_a_model_the_hits_are_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    Path("user_model_to_check.py").write_text(USER_MODULE)
    model = "user_model_to_check:create_model"
    try:
        code, out, err = check(capsys, FROZEN, "--model", model)
        assert (code, err) == (0, "")
        rows = [
            [c.strip() for c in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line
        ]
        hits = {row[0]: (row[3], row[4]) for row in rows if row[0]}
        assert hits == {"0": ("1", "stem_1"), "1": ("1", "decoder/bn"), "2": ("1", "decoder/a")}

        rules = [
            {"layers": "*", "policy": "float16"},
            {"layers": "deco*", "policy": "float32"},
            {"layers": "stme*", "policy": "float32"},
        ]
        Path("p.json").write_text(json.dumps({"rules": rules}))
        code, out, err = check(capsys, "p.json", "--model", model)
        assert code == 1
        assert "1 in force" in out
        assert "no layer" in out
        assert 'rules[2] (layers="stme*"): the nearest layer is "stem_1", a Dense' in err

        code, out, err = check(capsys, "p.json", "--model", "user_model_to_check:unbuilt")
        assert "is not built" in err
        code, out, err = check(capsys, "p.json", "--model", "user_model_to_check:creat_model")
        assert code == 2
        assert 'Did you mean "create_model"?' in err
    finally:
        sys.modules.pop("user_model_to_check", None)


@pytest.mark.pure
def test_long_lists_are_cut_unless_all_are_asked_for():
    from deepseek_hpf.cli.check import _listed

    paths = tuple(f"l{i}" for i in range(9))
    assert _listed(paths, False).endswith("l5\n… and 3 more")
    assert _listed(paths, True).endswith("l8")
    assert _listed((), False) == "no layer"
