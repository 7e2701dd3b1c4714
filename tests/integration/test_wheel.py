"""What is installed from a wheel has the files that are no Python."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
CLUTTER = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package as `pip` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a build leaves folders behind in its source
    shutil.copytree(ROOT / "deepseek_hpf", source / "deepseek_hpf", ignore=CLUTTER)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(folder), str(source)], check=True)
    (built,) = folder.glob("deepseek_hpf-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert b"hpf = deepseek_hpf.cli.main:run" in archive.read(entry_points)
    written = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "deepseek_hpf").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == written
    assert {"deepseek_hpf/py.typed", "deepseek_hpf/precision.schema.json"} < packed
    assert any(name.endswith(".html.j2") for name in packed)


@pytest.mark.slow
def test_what_the_wheel_installs_runs_the_demo(wheel, tmp_path):
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(installed), str(wheel)], check=True)
    code = (
        "import deepseek_hpf; print(deepseek_hpf.__file__)\n"
        "from deepseek_hpf.cli.main import run; run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--epochs", "1", "--output", "results"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(installed)
    assert (tmp_path / "results" / "report.html").stat().st_size > 1000
