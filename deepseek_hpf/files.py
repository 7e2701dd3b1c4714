"""Files that are either written whole or not at all, and the folder of the caches."""

import contextlib
import os
import tempfile
from pathlib import Path

StrPath = str | os.PathLike[str]
CACHE_VARIABLE = "DEEPSEEK_HPF_CACHE"


def cache_directory(given: StrPath | None = None) -> Path:
    """Returns the folder of this package's caches, without making it.

    Args:
        given: What the caller asked for; if None, the environment variable `DEEPSEEK_HPF_CACHE`,
            else `$XDG_CACHE_HOME/deepseek_hpf`, else `~/.cache/deepseek_hpf`. An empty variable,
            and a relative `XDG_CACHE_HOME`, count as not set, as the XDG specification has it.

    Returns:
        The folder's path.

    References:
        https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if given is not None:
        return Path(given).expanduser()
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (xdg if xdg.is_absolute() else Path("~/.cache").expanduser()) / "deepseek_hpf"


def write_text_atomically(path: StrPath, text: str) -> None:
    r"""Writes a text file as UTF-8 with `\n` line ends, so that a reader never sees half of it.

    Args:
        path: Where to write. What was there is replaced.
        text: The whole content.

    Raises:
        OSError: The directory is missing or not writable, or the disk is full. The old file, if
            any, is unharmed.
    """
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: StrPath, data: bytes) -> None:
    """Writes a file by way of a temporary one beside it, flushed to the disk and then renamed.

    A rename within a directory is atomic (POSIX `rename`, Windows `MoveFileEx`): whoever reads, and
    whoever comes after a crash, finds the old content or the new. A symbolic link stays a link, its
    target is replaced; the permissions of an existing file are kept.

    Args:
        path: Where to write. What was there is replaced.
        data: The whole content.

    Raises:
        OSError: As `write_text_atomically`.
    """
    target = Path(os.path.realpath(path))
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name[:64]}.", suffix=".tmp", dir=target.parent
        )
    except OSError as error:  # names the temporary file, which says nothing to the reader
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(target))
        _rename(temporary, target, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_directory(target.parent)


def _rename(temporary: str, target: Path, asked_for: StrPath) -> None:
    try:
        os.replace(temporary, target)
    except OSError as error:  # e.g. the place is a directory; the temporary name says nothing
        raise OSError(error.errno, error.strerror, os.fspath(asked_for)) from error


def _mode_for(target: Path) -> int:
    """Permissions of the file that is replaced, or those that `open` would give a new one."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode & 0o777
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def flush_directory(directory: Path) -> None:
    """Puts the rename itself on the disk, where a directory can be opened (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
