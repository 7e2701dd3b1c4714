"""Files appear whole or not at all."""

import os
import stat
import sys

import pytest

from deepseek_hpf import files
from deepseek_hpf.files import write_bytes_atomically, write_text_atomically

pytestmark = pytest.mark.pure


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    write_text_atomically(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    write_bytes_atomically(str(path), b"")
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_text_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_missing_directory_is_named_by_the_file_that_was_asked_for(tmp_path):
    path = tmp_path / "missing" / "a.json"
    with pytest.raises(FileNotFoundError) as caught:
        write_text_atomically(path, "x")
    assert caught.value.filename == str(path)


def test_a_directory_in_the_place_is_named_by_what_was_asked_for(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    with pytest.raises(OSError, match=r"folder'$") as caught:
        write_text_atomically(path, "x")
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and links")
def test_permissions_and_links_are_kept(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    write_text_atomically(path, "1")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    write_text_atomically(link, "2")
    assert link.is_symlink()
    assert path.read_text() == "2"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
