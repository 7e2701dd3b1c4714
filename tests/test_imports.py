"""Imports go one way, frameworks stay in files named for them, roots are lazy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

PACKAGE = Path(__file__).parents[1] / "deepseek_hpf"
FRAMEWORKS = {"tensorflow", "jax", "torch"}
# From the bottom to the top; modules of one row do not import each other. A sub-package is one
# entry, and within itself free.
ORDER: list[set[str]] = [
    {"errors"},
    {"extras", "lazy", "files", "timing", "worker_process"},
    {"measurement_cache"},
    {"dtypes"},
    {"hardware"},
    {"config_wording"},
    {"config_json", "config_numbers"},
    {"config_section"},
    {"config_dynamic"},
    {"config"},
    {"config_like", "config_schema", "plan"},
    {"scheduling"},
    {"policy"},
    {"optimizers", "storage"},
    {"adapters", "torch"},
    {"tuning", "profiler", "distributed", "data", "checkpoint"},
    {"memory"},
    {"dynamic"},
    {"callbacks"},
    {"bench", "demo"},
    {"cli"},
]
LEVEL = {name: level for level, row in enumerate(ORDER) for name in row}
SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """First-level name of a file: `optimizers/clipping.py` is `optimizers`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it out"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def backward_arrows(path: Path, imports: set[str]) -> list[str]:
    """Imports of the package that do not point to a lower row, or to the file's own part."""
    own = part_of(path)
    arrows = []
    for name in imports:
        parts = name.split(".")
        if parts[0] != "deepseek_hpf":
            continue
        if len(parts) == 1:
            arrows.append(f"{own} -> the package root")
        elif parts[1] in LEVEL and parts[1] != own and LEVEL[parts[1]] >= LEVEL[own]:
            arrows.append(f"{own} -> {parts[1]}")
    return arrows


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    assert part_of(path) in LEVEL, f"{path.name} has no place in ORDER"
    names = {n for n in imported_modules(path) if n != "deepseek_hpf.lazy"}
    # `from deepseek_hpf import x` yields the root as well as `deepseek_hpf.x`; only the root alone
    # is wrong.
    if any(n.startswith("deepseek_hpf.") and n.count(".") == 1 for n in names):
        names.discard("deepseek_hpf")
    assert backward_arrows(path, names) == []


def test_a_backward_arrow_is_seen():
    assert backward_arrows(PACKAGE / "config.py", {"deepseek_hpf.adapters.apply"}) == [
        "config -> adapters"
    ]
    assert backward_arrows(PACKAGE / "config.py", {"deepseek_hpf"}) == [
        "config -> the package root"
    ]
    assert backward_arrows(PACKAGE / "config.py", {"deepseek_hpf.dtypes", "json"}) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_frameworks_are_imported_only_in_files_named_for_them(path):
    frameworks = {n.split(".")[0] for n in imported_modules(path)} & FRAMEWORKS
    allowed = {f for f in FRAMEWORKS if path.stem.endswith(f"_{f}") or path.stem == f}
    if part_of(path) == "torch":
        allowed = {"torch"}
    assert frameworks <= allowed


@pytest.mark.parametrize(
    "module",
    [
        "deepseek_hpf",
        "deepseek_hpf.callbacks",
        "deepseek_hpf.cli.main",
        "deepseek_hpf.config",
        "deepseek_hpf.data",
        "deepseek_hpf.distributed",
        "deepseek_hpf.hardware",
        "deepseek_hpf.plan",
        "deepseek_hpf.scheduling",
        "deepseek_hpf.torch",
    ],
)
def test_import_brings_in_no_framework(module):
    code = (
        f"import sys, {module}; "
        "print(*sorted({'keras', 'tensorflow', 'jax', 'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_public_names_resolve():
    import deepseek_hpf

    for name in deepseek_hpf.__all__:
        assert getattr(deepseek_hpf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = deepseek_hpf.nonsense
    assert {"LossScaleOptimizer", "apply_policy"} <= set(dir(deepseek_hpf))
