"""A directory of backups of which one is always whole, whatever moment the process dies at.

A backup is a directory of two files: `state.npz`, the arrays (uncompressed, readable with
`numpy.load`, formats that NumPy does not know as unsigned integers of their size), and
`manifest.json`, all the rest with a digest of each array and of itself. It is written under a
temporary name, forced to the disk and renamed; only then does the one before it go.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepseek_hpf.checkpoint.training_state import numpy_dtype
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import flush_directory

FORMAT = "deepseek_hpf.backup"
VERSION = 1
PREFIX = "backup-"
PARTIAL, REMOVED = ".partial-", ".removed-"
KERAS_FILES = ("latest.weights.h5", "training_metadata.json")


@dataclass(frozen=True, slots=True)
class Backup:
    """One whole backup on the disk.

    Args:
        path: Its directory.
        manifest: What `manifest.json` holds.
    """

    path: Path
    manifest: Mapping[str, Any]

    def arrays(self, keys: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Reads arrays one by one, each checked against its digest.

        Args:
            keys: Names of arrays.

        Yields:
            Name and array, in its own dtype.

        Raises:
            ConfigError: An array is missing or damaged.
        """
        entries = {entry["key"]: entry for entry in self.manifest["arrays"]}
        file = self.path / "state.npz"
        with _damage_as_config_error(file), zipfile.ZipFile(file) as archive:
            for key in keys:
                yield key, _read_array(archive, entries[key])

    def verify(self) -> None:
        """Reads every array once.

        Raises:
            ConfigError: An array is missing or damaged.
        """
        for _ in self.arrays([entry["key"] for entry in self.manifest["arrays"]]):
            pass


class BackupStore:
    """The backups in one directory; one run at a time may use it.

    Args:
        directory: Where the backups lie. Made on the first write.
        keep: How many whole backups stay after a write.

    Raises:
        ConfigError: `directory` is empty, a file, or not on a local file system.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 1):
        text = os.fspath(directory) if directory else ""
        if not text:
            raise ConfigError(
                f"Empty `backup_dir` argument passed. Give the path of a directory. Received: "
                f"{directory!r}"
            )
        if "://" in text:
            raise ConfigError(
                "`backup_dir` must be on a mounted file system, where a directory can be renamed "
                "at once. "
                f"Received: backup_dir={text!r}"
            )
        self.directory = Path(text)
        self.keep = keep
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(
                f"`backup_dir` must be a directory; there is a file of that name. Received: "
                f"backup_dir={text!r}"
            )

    def clean(self) -> None:
        """Removes what a process that died while it wrote or removed a backup left behind."""
        for leftover in self._entries(PARTIAL) + self._entries(REMOVED):
            shutil.rmtree(leftover, ignore_errors=True)

    def paths(self) -> list[Path]:
        """Directories of the backups, the oldest first."""
        return self._entries(PREFIX)

    def load(self, path: Path) -> Backup:
        """Opens one backup and checks all of it.

        Args:
            path: Its directory.

        Returns:
            The backup; every byte of it was read and agreed with its digest.

        Raises:
            ConfigError: It is damaged, or of a format that this version does not know.
        """
        backup = Backup(path, _read_manifest(path / "manifest.json"))
        backup.verify()
        return backup

    def check_foreign(self) -> None:
        """Refuses a directory in which Keras's own callback left a backup.

        Raises:
            ConfigError: There is one, and none of ours.
        """
        found = [name for name in KERAS_FILES if (self.directory / name).exists()]
        if found and not self.paths():
            raise ConfigError(
                f"`backup_dir` holds a backup of keras.callbacks.BackupAndRestore ({found[0]}), "
                f"which lacks the "
                "random states, the step and the metrics. Resume it with Keras's callback, or give "
                "another "
                f"directory. Received: backup_dir={str(self.directory)!r}"
            )

    def write(self, manifest: Mapping[str, Any], arrays: Iterable[tuple[str, np.ndarray]]) -> Path:
        """Writes a backup and then removes those beyond `keep`.

        Args:
            manifest: JSON values; the digests are added.
            arrays: Names and arrays, taken one by one.

        Returns:
            Directory of the new backup.

        Raises:
            OSError: The disk is full or not writable; the backup before this one stays.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        existing = self.paths()
        number = int(existing[-1].name.removeprefix(PREFIX)) + 1 if existing else 0
        final = self.directory / f"{PREFIX}{number:08d}"
        partial = self.directory / f"{PARTIAL}{final.name}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        entries = _write_arrays(partial / "state.npz", arrays)
        _write_manifest(partial / "manifest.json", {**manifest, "arrays": entries})
        flush_directory(partial)
        partial.rename(final)
        flush_directory(self.directory)
        for path in self.paths()[: -self.keep]:
            self._remove(path)
        return final

    def delete(self) -> None:
        """Removes all backups, and the directory if nothing else is in it."""
        for path in self.paths():
            self._remove(path)
        self.clean()
        if self.directory.is_dir() and not any(self.directory.iterdir()):
            self.directory.rmdir()

    def _remove(self, path: Path) -> None:
        """Renames first: a half-removed backup must not look like one."""
        leftover = path.with_name(f"{REMOVED}{path.name}")
        path.rename(leftover)
        shutil.rmtree(leftover, ignore_errors=True)

    def _entries(self, prefix: str) -> list[Path]:
        if not self.directory.is_dir():
            return []
        return sorted(
            p for p in self.directory.iterdir() if p.name.startswith(prefix) and p.is_dir()
        )


def _write_arrays(file: Path, arrays: Iterable[tuple[str, np.ndarray]]) -> list[dict[str, Any]]:
    entries = []
    with file.open("wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for key, array in arrays:
                stored = np.ascontiguousarray(_as_plain(array)).reshape(array.shape)
                with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, stored, allow_pickle=False)
                entries.append({"key": key, "dtype": array.dtype.name, "sha256": _digest(stored)})
        stream.flush()
        os.fsync(stream.fileno())
    return entries


def _read_array(archive: zipfile.ZipFile, entry: Mapping[str, Any]) -> np.ndarray:
    with archive.open(f"{entry['key']}.npy") as member:
        stored: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
    if _digest(stored) != entry["sha256"]:
        raise ValueError(f"array {entry['key']!r} does not agree with its digest")
    dtype = numpy_dtype(entry["dtype"])
    return stored if stored.dtype == dtype else stored.view(dtype)


def _as_plain(array: np.ndarray) -> np.ndarray:
    """Formats that NumPy cannot write by name (bfloat16, float8) as unsigned integers."""
    if array.dtype.isbuiltin == 1:
        return array
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _write_manifest(file: Path, manifest: Mapping[str, Any]) -> None:
    content = {"format": FORMAT, "version": VERSION, **manifest}
    with file.open("w", encoding="utf-8") as stream:
        json.dump({**content, "sha256": _text_digest(content)}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _read_manifest(file: Path) -> dict[str, Any]:
    with _damage_as_config_error(file):
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("it is not a manifest of this package")
        if content.get("version") != VERSION:
            raise ValueError(
                f"its version is {content.get('version')!r}, and this package reads version "
                f"{VERSION}"
            )
        if content.pop("sha256", None) != _text_digest(content):
            raise ValueError("it does not agree with its digest")
    return content


def _text_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _damage_as_config_error(file: Path) -> Iterator[None]:
    """Whatever a damaged file raises, truncated or no UTF-8, becomes one error."""
    try:
        yield
    except (OSError, ValueError, KeyError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        raise ConfigError(
            "A backup cannot be read, and training does not silently start anew without it: "
            f"{error or type(error).__name__}. Restore the file, or delete the directory "
            f"{str(file.parent)!r} to start from what is left. Received: file={str(file)!r}"
        ) from error
