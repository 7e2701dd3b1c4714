"""What was measured on this machine, kept from one run to the next."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepseek_hpf.files import StrPath, cache_directory, write_text_atomically

logger = logging.getLogger(__name__)
_FORMAT = 1


class MeasurementCache:
    """One JSON file for each key, in a folder of the user's cache.

    A file holds its key beside its value: one that is damaged, of another format or of another key
    counts as not there, and the next `put` replaces it. A cache that cannot be written is no error:
    what it would hold is measured again.

    Args:
        kind: What is kept, e.g. `"probes"`: the name of the folder.
        directory: The cache's folder; see `files.cache_directory`.

    Example:
        >>> import tempfile
        >>> from deepseek_hpf.measurement_cache import MeasurementCache
        >>> cache = MeasurementCache("examples", directory=tempfile.mkdtemp())
        >>> cache.put({"device": "cpu"}, {"flops": 1e9})
        >>> cache.get({"device": "cpu"}), cache.get({"device": "gpu"})
        ({'flops': 1000000000.0}, None)
    """

    def __init__(self, kind: str, directory: StrPath | None = None):
        self._folder = cache_directory(directory) / kind

    def get(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Reads what was kept under a key.

        Args:
            key: JSON values; equal keys have equal JSON with sorted names.

        Returns:
            The value, or None.
        """
        entry = _read(self._file(key))
        return entry["value"] if entry is not None and entry["key"] == _as_json(key) else None

    def put(self, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Keeps a value, whole or not at all.

        Args:
            key: As for `get`.
            value: JSON values.
        """
        entry = {"format": _FORMAT, "key": key, "value": value}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self._file(key), json.dumps(entry, indent=1, allow_nan=False))
        except OSError as error:
            logger.warning("What was measured could not be kept: %s", error)

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """All that is kept, the newest first.

        Yields:
            Key and value.
        """
        files: list[tuple[float, Path]] = []
        with contextlib.suppress(OSError):
            files = [(file.stat().st_mtime, file) for file in self._folder.glob("*.json")]
        for _, file in sorted(files, reverse=True):
            entry = _read(file)
            if entry is not None:
                yield entry["key"], entry["value"]

    def _file(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, allow_nan=False)
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT:
        return None
    is_whole = isinstance(entry.get("key"), dict) and isinstance(entry.get("value"), dict)
    return entry if is_whole else None


def _as_json(key: Mapping[str, Any]) -> Any:
    """The key as it comes back from a file: tuples are lists there."""
    return json.loads(json.dumps(key))
