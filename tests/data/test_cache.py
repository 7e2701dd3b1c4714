"""Folders are written whole or not at all, by many at once, through kills and damage."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_hpf.data.cache import ensure_folder, is_whole, write_manifest
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import cache_directory

pytestmark = pytest.mark.pure


def write(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.bin").write_bytes(b"a" * 1000)
    (folder / "b.bin").write_bytes(b"")


def refuse(folder: Path) -> None:
    raise AssertionError("it was whole already")


def test_a_whole_folder_is_written_once(tmp_path):
    place = ensure_folder(tmp_path / "deep" / "1.0.0", write)
    assert is_whole(place)
    assert ensure_folder(place, refuse) == place
    assert [path.name for path in place.parent.iterdir()] == ["1.0.0"]  # nothing is left beside it


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "sub" / "a.bin").write_bytes(b"b" + b"a" * 999),
        lambda place: (place / "sub" / "a.bin").unlink(),
        lambda place: (place / "more").write_bytes(b""),
        lambda place: (place / "sha256.json").write_text("{"),
        lambda place: (place / "sha256.json").write_bytes(b"\xff\xfe"),
        lambda place: (place / "sha256.json").unlink(),
        lambda place: [path.unlink() for path in place.rglob("*") if path.is_file()],
    ],
    ids=["flipped", "missing", "more", "cut", "encoding", "no manifest", "empty"],
)
def test_a_damaged_folder_is_written_anew(tmp_path, damage):
    place = ensure_folder(tmp_path / "1.0.0", write)
    damage(place)
    assert not is_whole(place)
    ensure_folder(place, write)
    assert is_whole(place)
    assert (place / "sub" / "a.bin").read_bytes() == b"a" * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]


def test_an_empty_manifest_is_no_proof(tmp_path):
    (tmp_path / "1.0.0").mkdir()
    write_manifest(tmp_path / "1.0.0")
    assert not is_whole(tmp_path / "1.0.0")


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_folder(tmp_path / "1.0.0", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_no_folder_in_the_place(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from deepseek_hpf.data.cache import *\n"
        "def write(folder):\n"
        "    (folder / 'a').write_bytes(b'a'); print('half', flush=True); time.sleep(60)\n"
        "ensure_folder(Path(sys.argv[1]), write)"
    )
    place = tmp_path / "1.0.0"
    child = subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not place.exists()
    (left,) = tmp_path.iterdir()
    old = time.time() - 2 * 24 * 3600
    os.utime(left, (old, old))
    ensure_folder(place, write)
    assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]  # the old remains are gone


def _ensure(place: str) -> None:
    def slowly(folder):
        write(folder)
        time.sleep(0.2)

    ensure_folder(Path(place), slowly)
    if not is_whole(Path(place)):
        sys.exit(3)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_processes_that_write_at_the_same_time(tmp_path, is_damaged):
    place = tmp_path / "1.0.0"
    if is_damaged:
        place.mkdir()
        (place / "half").write_bytes(b"x")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_ensure, args=(str(place),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert is_whole(place)
    assert [path.name for path in tmp_path.iterdir()] == ["1.0.0"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written.*cache_dir.*DEEPSEEK_HPF_CACHE"):
        ensure_folder(tmp_path / "file" / "1.0.0", write)


def test_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DEEPSEEK_HPF_CACHE", raising=False)
    assert cache_directory() == tmp_path / "home" / ".cache" / "deepseek_hpf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / "home" / ".cache" / "deepseek_hpf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "deepseek_hpf"
    monkeypatch.setenv("DEEPSEEK_HPF_CACHE", "~/own")
    assert cache_directory() == tmp_path / "home" / "own"
    assert cache_directory(tmp_path / "given") == tmp_path / "given"
