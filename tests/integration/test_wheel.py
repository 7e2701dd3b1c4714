"""What is installed from a wheel has the files that are no Python."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.pure

ROOT = Path(__file__).parents[2]
CLUTTER = shutil.ignore_patterns("__pycache__")


@pytest.mark.slow
def test_the_wheel_is_whole(tmp_path):
    source = tmp_path / "source"  # a build leaves folders behind in its source
    shutil.copytree(ROOT / "deepseek_hpf", source / "deepseek_hpf", ignore=CLUTTER)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("deepseek_hpf-*.whl")
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
