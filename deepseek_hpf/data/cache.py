"""Folders of the cache: written once, whole or not at all, and checked before they are read.

A folder is written under a temporary name beside its place, with a manifest of the SHA-256 of each
of its files, and renamed. So a process that is killed leaves no half folder in the place, of
several processes that write at the same time one wins and the others use its folder, and a folder
that was damaged later is found out and written anew.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import CACHE_VARIABLE

MANIFEST = "sha256.json"
_ABANDONED_AFTER = 24 * 3600.0  # seconds; a writer takes some seconds


def write_manifest(folder: Path) -> None:
    """Writes the SHA-256 of every file in a folder into the folder."""
    text = json.dumps(_digests(folder), indent=1, sort_keys=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Returns whether a folder holds exactly the files of its manifest, unchanged."""
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(expected) and expected == _digests(folder)
    except (OSError, ValueError):
        return False


def ensure_folder(place: Path, write: Callable[[Path], None]) -> Path:
    """Returns `place`, a whole folder: as it is there, or written now.

    Args:
        place: The folder's path; its name is kept, as some formats look at it.
        write: Fills the empty folder that it is given, which lies elsewhere but has the same name.

    Returns:
        `place`.

    Raises:
        ConfigError: The folder cannot be written.
    """
    if is_whole(place):
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(place.parent)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=place.parent))
    except OSError as error:
        raise ConfigError(
            f"The cache folder cannot be written: {error}. Received: {str(place.parent)!r}. Name "
            f"another one by `cache_dir`, or by the environment variable {CACHE_VARIABLE}."
        ) from error
    try:
        written = scratch / place.name
        written.mkdir()
        write(written)
        write_manifest(written)
        _move_into_place(written, place, scratch / "damaged")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != MANIFEST
    }


def _move_into_place(written: Path, place: Path, damaged: Path) -> None:
    """Renames; a damaged folder in the place makes room, another process's whole one stays."""
    while not is_whole(place):
        with contextlib.suppress(FileNotFoundError):
            os.rename(place, damaged)
        try:
            os.rename(written, place)
        except OSError:
            if not place.exists():
                raise
            shutil.rmtree(
                damaged, ignore_errors=True
            )  # another process was faster: look at its folder


def _remove_abandoned(parent: Path) -> None:
    """Removes what killed writers left: it does no harm but takes room."""
    limit = time.time() - _ABANDONED_AFTER
    for path in parent.glob(".writing-*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < limit:
                shutil.rmtree(path, ignore_errors=True)
