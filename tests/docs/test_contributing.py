"""Each recipe of CONTRIBUTING.md works: it is applied to a copy of the package, word for word."""

import os
import subprocess
import sys

import pytest
from recipes import change, copied, follow, recipe

RECIPES = ("Add a controller", "Add a clipping rule", "Add a hardware vendor", "Add a kernel")
ORDER = (  # of the imports, and where frameworks may be imported
    "tests/test_imports.py::test_imports_go_one_way",
    "tests/test_imports.py::test_frameworks_are_imported_only_in_files_named_for_them",
)
WRITE_SCHEMA = "from deepseek_hpf.cli.main import run; run(['schema', '-o', 'schema.json'])"


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_the_recipes_work(tmp_path):
    folder = copied(tmp_path)

    def python(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    steps = [recipe(heading) for heading in RECIPES]
    paths = [path for each in steps for path in follow(each, folder)]
    tests = [path for path in paths if path.startswith("tests/")]
    assert len(tests) == len(RECIPES)
    python("-c", WRITE_SCHEMA)
    schema = (folder / "schema.json").read_text(encoding="utf-8")
    assert '"cautious"' in schema
    assert '"MeanConfig"' in schema
    python("-m", "pytest", "-q", "-W", "ignore", *tests, *ORDER)
    python("-m", "ruff", "check", *paths)
    python("-m", "ruff", "format", "--check", *paths)


@pytest.mark.pure
def test_a_change_that_does_not_fit_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("one\ntwo\n")
    change("--- a.py\n one\n-two\n+three\n", tmp_path)
    assert (tmp_path / "a.py").read_text() == "one\nthree\n"
    with pytest.raises(AssertionError, match="not once"):
        change("--- a.py\n-two\n+four\n", tmp_path)
