"""A text that every machine has: the source code of Python's standard library."""

import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepseek_hpf.data.batches import Arrays, check_batch_size, make_batches
from deepseek_hpf.errors import ConfigError

SPLITS = ("train", "validation")
UNKNOWN = "\ufffd"
PYTHON_CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1))) + UNKNOWN
"""The vocabulary, a character for each index: the same whatever the version of Python."""

_VALIDATION_SHARE = 10  # one character in ten
_ASCII = 128


def python_source(
    split: str | None = None,
    *,
    batch_size: int | None = None,
    length: int = 128,
    size: int = 1_000_000,
    seed: int = 0,
) -> Any:
    """Returns source code of Python's standard library as sequences of characters; offline.

    It is read from the modules (not the packages) of the running Python, in the order of their
    names, until there are `size` characters. The last tenth of each file is for validation. A tab
    is four spaces; what is not printable ASCII is one character, the last of the vocabulary
    `data.PYTHON_CHARACTERS`. The text differs between versions of Python, the vocabulary does not.

    Args:
        split: `"train"`, `"validation"`, or None for both.
        batch_size: Sequences a batch; None for arrays.
        length: Characters of a sequence. The sequences do not overlap.
        size: Characters in both splits together, at most; all modules have about 4.5 million.
        seed: Of the order of training batches, which is a new one each epoch. On TensorFlow the
            global seed, `keras.utils.set_random_seed`, counts too, as always in tf.data.

    Returns:
        Without `batch_size`, arrays: characters, and for each of them the one that follows, both
        `(count, length)`, int32, indices into `data.PYTHON_CHARACTERS`; `(inputs, targets)` of one
        split, or `(train, validation)` of such pairs. With it, batches for `model.fit`: a
        `tf.data.Dataset` on TensorFlow, a `keras.utils.PyDataset` on the other back ends; training
        batches are shuffled and full.

    Raises:
        ConfigError: An argument is out of its range, or the source code is not installed.

    Example:
        >>> from deepseek_hpf import data
        >>> inputs, targets = data.python_source("train", length=64, size=100_000)
        >>> inputs.shape, str(inputs.dtype)
        ((1406, 64), 'int32')
        >>> bool((inputs[:, 1:] == targets[:, :-1]).all())
        True
        >>> "".join(data.PYTHON_CHARACTERS[index] for index in inputs[0, :12])
        '\"\"\"Record of'

    References:
        https://docs.python.org/3/library/
    """
    _check(split, batch_size, length, size)
    if split is None:
        options: dict[str, Any] = {"batch_size": batch_size, "size": size, "seed": seed}
        return tuple(python_source(name, length=length, **options) for name in SPLITS)
    arrays = _sequences(encoded(_text(split, size)), length)
    if batch_size is None:
        return arrays
    return make_batches(arrays, batch_size, shuffle=split == "train", seed=seed)


def encoded(text: str) -> NDArray[np.int32]:
    """Returns the indices of a text's characters in `PYTHON_CHARACTERS`.

    Args:
        text: The text.

    Returns:
        Indices `(characters,)`, int32.
    """
    index_of = np.full(_ASCII, len(PYTHON_CHARACTERS) - 1, np.int32)
    index_of[[ord(character) for character in PYTHON_CHARACTERS[:-1]]] = np.arange(
        len(PYTHON_CHARACTERS) - 1
    )
    codes = np.frombuffer(text.expandtabs(4).encode("utf-32-le", "surrogatepass"), np.uint32)
    return index_of[np.minimum(codes, _ASCII - 1)]  # 127 is no character of the vocabulary either


def _check(split: str | None, batch_size: int | None, length: int, size: int) -> None:
    if split is not None and split not in SPLITS:
        raise ConfigError(f"`split` must be 'train', 'validation' or None. Received: {split=}")
    for name, value in (("length", length), ("size", size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if batch_size is not None:
        check_batch_size(batch_size)


def _text(split: str, size: int) -> str:
    parts = []
    for path in _modules():
        text = path.read_text(encoding="utf-8", errors="replace")[:size]
        size -= len(text)
        cut = len(text) - len(text) // _VALIDATION_SHARE
        parts.append(text[:cut] if split == "train" else text[cut:])
        if not size:
            break
    return "".join(parts)


def _modules() -> list[Path]:
    """The modules that are Python's own: installers put others beside them."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = [path for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names]
    if not found:
        raise ConfigError(
            f"expected the standard library's source code in {str(folder)!r}, which has no module. "
            "Run under a Python that is installed with it."
        )
    return sorted(found, key=lambda path: path.name)


def _sequences(text: NDArray[np.int32], length: int) -> Arrays:
    end = (len(text) - 1) // length * length
    if end < length:
        raise ConfigError(
            f"expected a `size` from which each split gets a sequence and one character. Received: "
            f"length={length}, and {len(text)} characters in the split. Give more of them."
        )
    return text[:end].reshape(-1, length), text[1 : end + 1].reshape(-1, length)
