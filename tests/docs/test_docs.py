"""The pages' code runs, their commands exist, and no public name is missing."""

import importlib
import inspect
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, PAGES, ROOT, blocks, commands, mentioned
from run_pages import run

import deepseek_hpf
from deepseek_hpf.config import PrecisionConfig

sys.path.insert(0, str(DOCS / "_ext"))
from command_reference import all_commands
from markdown_docstrings import converted

pytestmark = pytest.mark.pure

AUTODOC = re.compile(r"^\.\. auto\w+:: (\S+)$", re.MULTILINE)
WITH_CODE = [page for page in PAGES if blocks(page, "python")]
PYTORCH = DOCS / "pytorch.md"
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
WITH_COMMANDS = [page for page in TEXTS if commands(page) or mentioned(page)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the code of each page did: one process for Keras's, and one without Keras."""
    folder = tmp_path_factory.mktemp("pages")
    environment = {**os.environ, "DEEPSEEK_HPF_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    found = {}
    for pages in ([p for p in WITH_CODE if p != PYTORCH], [PYTORCH]):
        script, results = Path(__file__).parent / "run_pages.py", folder / "results.json"
        command = [sys.executable, str(script), str(results), *map(str, pages)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found |= json.loads(results.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_code_of_a_page_runs(page, outcomes):
    assert isinstance(outcomes[str(page)], int), outcomes[str(page)]


@pytest.mark.slow
def test_outputs_are_compared(outcomes):
    assert sum(count for count in outcomes.values() if isinstance(count, int)) > 30


def test_a_wrong_output_is_seen(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)  # 2\nprint(1 + 1)  # 3\n```\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="expected '3', as it says"):
        run(page)


def test_the_configurations_are_valid():
    found = [block for page in PAGES for block in blocks(page, "json")]
    assert found
    for block in found:
        PrecisionConfig.from_dict(json.loads(block.text))


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_the_commands_are_there(page):
    for line in commands(page):
        problem = wrong_with(line)
        assert problem is None, f"{line}: {problem}"
    for line in mentioned(page):  # in a sentence, what a command needs may be left out
        problem = wrong_with(line)
        assert problem is None or "Missing" in problem, f"{line}: {problem}"


def wrong_with(line: str) -> str | None:
    """What is wrong with a command of ours, or with one of the repository's."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return None if f"\n{words[1]}:" in makefile else "no such target"
    for script in (word for word in words if word.endswith(".py")):
        return None if (ROOT / script).exists() else "no such script"
    if not words[0].startswith("hpf"):
        return None
    if words[1:] in (["--help"], ["--version"], ["--install-completion"]):
        return None
    known = all_commands()
    name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
    if name is None:
        return "no such command"
    if words[-1] == "--help":
        return None
    try:
        known[name].make_context(name, words[len(name.split()) :])
    except Exception as error:  # noqa: BLE001 - typer's have other names in older versions
        return str(error)
    return None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hpf tun my_models:create_model", "no such command"),
        ("hpf tune my_models:create_model --bach-size 3", "--bach-size"),
        ("hpf tune", "Missing"),
        ("make tea", "target"),
        ("python examples/nothing.py", "script"),
        ("torchrun --nproc-per-node 2 examples/nothing.py", "script"),
    ],
)
def test_a_wrong_command_is_seen(line, words):
    assert words in (wrong_with(line) or "")


def public_objects() -> dict[str, object]:
    """Everything that the root and the lazy sub-packages offer, sub-modules left out."""
    roots = [deepseek_hpf]
    for module in pkgutil.iter_modules(deepseek_hpf.__path__, "deepseek_hpf."):
        if module.ispkg:
            roots.append(importlib.import_module(module.name))
    found = {
        f"{root.__name__}.{name}": getattr(root, name)
        for root in roots
        for name in getattr(root, "__all__", ())
    }
    rules = deepseek_hpf.clipping.RULES.values()
    found |= {f"deepseek_hpf.clipping.{rule.__name__}": rule for rule in rules}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


def documented() -> list[str]:
    """The names in the API reference."""
    texts = [page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md"))]
    return [name for text in texts for name in AUTODOC.findall(text)]


def resolved(name: str) -> object:
    value: object = deepseek_hpf
    prefix = "deepseek_hpf"
    for word in name.split(".")[1:]:
        prefix = f"{prefix}.{word}"
        if not hasattr(value, word):
            importlib.import_module(prefix)
        value = getattr(value, word)
    return value


def test_the_reference_has_every_public_name():
    public, written = public_objects(), documented()
    assert len(public) > 40
    assert len(written) == len(set(written))
    there = {id(resolved(name)) for name in written}
    assert [name for name, value in public.items() if id(value) not in there] == []


def test_docstrings_are_converted():
    lines = ["See [Adam `x`](https://a.b/c).", "", "```python", "a = 1", "```", "", "| a | b |"]
    lines += ["| - | - |", "| 1 | 2 |"]
    assert converted(lines) == [
        "See `Adam x <https://a.b/c>`__.",
        "",
        ".. code-block:: python",
        "",
        "   a = 1",
        "",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - a",
        "     - b",
        "   * - 1",
        "     - 2",
    ]
