"""`MODULE:FUNCTION`: from the current directory; each mistake is one clear line."""

import sys

import pytest

from deepseek_hpf.cli.loading import load_factory, load_model
from deepseek_hpf.errors import ConfigError

MODULE = """
import functools
def create_model(units=2):
    import keras
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, name="fc")])
class Models:
    @staticmethod
    def small():
        return create_model(1)
preset = functools.partial(create_model, units=4)
def needs(width, *, depth, seed=0): ...
def breaks():
    raise RuntimeError("first line\\nsecond line " + "x" * 1000)
def quits():
    raise SystemExit(3)
def returns_nothing(): ...
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with modules in it, of which nothing is left behind."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "user_models.py").write_text(MODULE)
    (tmp_path / "user_broken.py").write_text("x = 1\nimport no_such_package_at_all\n")
    (tmp_path / "user_syntax.py").write_text("def f(:\n")
    (tmp_path / "user_fails.py").write_text("\nraise KeyError('gone')\n")
    (tmp_path / "user_quits.py").write_text("import sys\nsys.exit(1)\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "units"), [("create_model", 2), ("Models.small", 1), ("preset", 4)]
)
def test_loads_from_the_current_directory(here, target, units):
    assert load_model(f"user_models:{target}").output_shape == (None, units)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("user_models", "expected MODULE:FUNCTION"),
        ("user_models:", "expected MODULE:FUNCTION"),
        (":create_model", "expected MODULE:FUNCTION"),
        ("a b:c", 'Received: "a b:c"'),
        ("user_models.py:create_model", 'Did you mean "user_models:create_model"?'),
        ("user_nowhere:f", "no module named 'user_nowhere'"),
        ("user_models.sub:f", "no module named 'user_models.sub'"),
        ("user_broken:f", "importing user_broken raised ModuleNotFoundError: No module named"),
        ("user_syntax:f", "importing user_syntax raised SyntaxError"),
        ("user_fails:f", "raised KeyError: 'gone' (user_fails.py, line 2)"),
        ("user_quits:f", "importing user_quits raised SystemExit: 1"),
        ("user_models:create_modl", 'no attribute "create_modl". Did you mean "create_model"?'),
        ("user_models:Models.tiny", 'Models has no attribute "tiny"'),
        ("user_models:number.real.x", 'no attribute "x"'),
        ("user_models:number", "expected a function. Received: 3"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(here, target, words):
    with pytest.raises(ConfigError) as caught:
        load_factory(target)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("needs", "Received one that needs: width, depth"),
        ("breaks", "user_models:breaks() raised RuntimeError: first line second line xxx"),
        ("quits", "raised SystemExit: 3"),
        ("returns_nothing", "expected it to return a keras.Model. Received: null"),
        ("Models", "expected it to return a keras.Model"),
    ],
)
def test_what_is_no_factory_is_one_line(here, name, words):
    with pytest.raises(ConfigError) as caught:
        load_model(f"user_models:{name}")
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert len(text) < 500
