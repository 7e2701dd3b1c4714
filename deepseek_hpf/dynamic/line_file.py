"""A text file that is only ever appended to, a whole line at a time, and outlives a killed run."""

import logging
import os
from pathlib import Path
from typing import IO

from deepseek_hpf.config_wording import shown, shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath

logger = logging.getLogger(__name__)

_BLOCK = 1 << 16  # bytes


class LineFile:
    """Lines appended to a file, each handed to the system in one piece before `write` returns.

    A run that is killed leaves at most one broken line, the last. Opening the file again cuts that
    line off. A disk that is full ends the file with a warning, but not the training.

    Args:
        path: The file. Its folder is made if it is missing.
        beginning: What the file begins with, if it holds anything.

    Raises:
        ConfigError: The file cannot be written, or it begins otherwise.
    """

    def __init__(self, path: StrPath, beginning: bytes):
        self._path = Path(path).expanduser()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] | None = open(self._path, "a+b", buffering=0)  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"expected a file that can be written. Received: {shown_path(path)} ({error})."
            ) from error
        try:
            _check_beginning(self._file, beginning)
            _cut_broken_line(self._file)
        except (OSError, ConfigError) as error:
            self.close()
            raise ConfigError(f"{shown_path(path)}: {error}") from error

    def write(self, line: bytes) -> None:
        """Appends a line.

        Args:
            line: Without its end.
        """
        if self._file is None:
            return
        data = line + b"\n"
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            logger.warning("%s: no more is written to it: %s", self._path, error)
            self.close()

    def close(self) -> None:
        """Closes the file; what is written after that is dropped."""
        if self._file is not None:
            self._file.close()
            self._file = None


class NoFile:
    """Takes lines and keeps none."""

    def write(self, line: bytes) -> None:
        """Drops a line."""

    def close(self) -> None:
        """Does nothing."""


def _check_beginning(file: IO[bytes], beginning: bytes) -> None:
    """A file of something else is left as it is."""
    file.seek(0)
    found = file.read(len(beginning))
    if found != beginning[: len(found)]:
        raise ConfigError(
            f"expected no file, or one that begins with {beginning.decode()}. Received: one that "
            f"begins with {shown(found.decode('utf-8', 'replace'))}. Give another path."
        )


def _cut_broken_line(file: IO[bytes]) -> None:
    end = size = file.seek(0, os.SEEK_END)
    while end:
        start = max(end - _BLOCK, 0)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        end = start + at + 1 if at >= 0 else start
        if at >= 0:
            break
    if end < size:
        file.truncate(end)
