"""The batch of a command that takes `--data FILE.npz`: from the file, or made up."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

from deepseek_hpf.config_wording import shown_path
from deepseek_hpf.errors import ConfigError

_FORM = (
    'expected a file of `np.savez(path, x=…, y=…)`, with "x0", "x1", … for several inputs, "y0", '
    '… for several outputs, and "sample_weight" if wanted.'
)


def batch_from(model: Any, path: Path | None, rows: int) -> tuple[Any, ...]:
    """Returns a batch for a model.

    Args:
        model: The Keras model.
        path: A file of NumPy arrays, or None for a batch made up from the model's shapes.
        rows: Rows of the batch; those of a file are its first.

    Returns:
        `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ConfigError: The file is none of NumPy's, or lacks `x` or `y`, or has objects in it; or the
            model does not say what it takes.
        OSError: The file cannot be read.
    """
    if path is None:
        from deepseek_hpf.adapters.synthetic_batch import synthetic_batch

        return synthetic_batch(model, rows)
    return batch_from_file(path, rows)


def batch_from_file(path: Path, rows: int) -> tuple[Any, ...]:
    """Reads a batch.

    Args:
        path: A file of NumPy arrays.
        rows: Rows of the batch, the first of the file.

    Returns:
        `(x, y)` or `(x, y, sample_weight)`; several inputs or outputs are lists.

    Raises:
        ConfigError: The file is none of NumPy's, or lacks `x` or `y`, or has objects in it.
        OSError: The file cannot be read.
    """
    arrays = _arrays(path)
    parts = [_part(arrays, "x", path, rows), _part(arrays, "y", path, rows)]
    if "sample_weight" in arrays:
        parts.append(arrays["sample_weight"][:rows])
    return tuple(parts)


def _arrays(path: Path) -> dict[str, Any]:
    import numpy as np

    if os.path.isdir(path):
        raise ConfigError(f"{shown_path(path)} is a folder: {_FORM}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file.items())
    except OSError:
        raise
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{shown_path(path)}: {_FORM} Received one that fails: {error}"
        ) from error
    return arrays


def _part(arrays: dict[str, Any], letter: str, path: Path, rows: int) -> Any:
    if letter in arrays:
        found = [arrays[letter]]
    else:
        names = [name for name in arrays if re.fullmatch(rf"{letter}\d+", name)]
        found = [arrays[name] for name in sorted(names, key=lambda name: int(name[1:]))]
    if not found or any(array.ndim == 0 for array in found):
        there = ", ".join(map(repr, arrays)) or "nothing"
        raise ConfigError(f"{shown_path(path)}: {_FORM} Received one with {there}.")
    cut = [array[:rows] for array in found]
    return cut[0] if letter in arrays else cut
