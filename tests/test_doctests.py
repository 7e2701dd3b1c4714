"""The examples in the docstrings are true, on every back end; public names have one."""

import ast
import doctest
import importlib
import inspect
import os
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "deepseek_hpf"
BACKEND = os.environ["KERAS_BACKEND"]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FRAMEWORKS = ("tensorflow", "jax", "torch")


def has_example(path: Path) -> bool:
    """Whether a docstring of the file holds an interactive example."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return any(
        ">>>" in (ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, documented)
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_this_back_end(module: str) -> bool:
    """A file named for a framework is for that one; the others are neutral."""
    named_for = [name for name in FRAMEWORKS if module.endswith(f"_{name}")]
    return not named_for or named_for == [BACKEND]


MODULES = sorted(name_of(path) for path in PACKAGE.rglob("*.py") if has_example(path))


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch, global_dtype_policy):
    """Examples may write files and set the global policy; the next test does not notice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPSEEK_HPF_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow_with("jax")
@pytest.mark.parametrize("module", [name for name in MODULES if is_for_this_back_end(name)])
def test_examples_are_true(module):
    loaded = importlib.import_module(module)
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(loaded, module):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries > 0


def public_objects():
    """Classes and functions that the root and its public sub-packages offer, by full name."""
    for package in ("deepseek_hpf", "deepseek_hpf.callbacks", "deepseek_hpf.data"):
        root = importlib.import_module(package)
        for name in root.__all__:
            value = getattr(root, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{package}.{name}", value
    clipping = importlib.import_module("deepseek_hpf.optimizers.clipping")
    for name in ("GlobalNorm", "Value", "Adaptive", "Anomaly"):
        yield f"deepseek_hpf.clipping.{name}", getattr(clipping, name)


def test_public_names_have_an_example():
    objects = dict(public_objects())
    assert len(objects) > 10
    lacking = [
        name for name, value in objects.items() if "Example:" not in (inspect.getdoc(value) or "")
    ]
    assert lacking == []


def test_a_false_example_is_seen():
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "false", None, 0)
    runner.run(test, out=lambda text: None)
    assert runner.failures == 1
