"""A backup that another Keras back end made: what may differ, and how it is taken over.

Keras counts in int64 under TensorFlow and in int32 under JAX and PyTorch, and keeps seeds in
int64, uint32 and int32. All else is the same bits. From the first step on the runs part all the
same: each framework sums in another order, draws other random numbers and shuffles otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from deepseek_hpf.checkpoint.backup_store import Backup
from deepseek_hpf.checkpoint.training_state import StateVariable, numpy_dtype
from deepseek_hpf.errors import ConfigError

SEED = "seed_generator_state"


def is_of_another(backup: Backup) -> bool:
    """Whether a backup was made under another back end than the running one."""
    return bool(backup.manifest["backend"] != keras.backend.backend())


def warning(backup: Backup) -> str:
    """What the user should know, in sentences."""
    order = (
        " It was made within an epoch: arrays that Keras shuffles come in another order, so some "
        "samples of this epoch may be trained on twice, and others not."
    )
    return (
        f"The backup was made under the back end {backup.manifest['backend']!r}, and this is "
        f"{keras.backend.backend()!r}. Weights, optimizer, loss scale, plan and history are taken "
        "over exactly; the run will not end with the bits that it would have ended with there."
        + (order if backup.manifest["step"] else "")
    )


def as_here(
    expected: Sequence[Mapping[str, Any]], found: Sequence[StateVariable]
) -> list[Mapping[str, Any]]:
    """Descriptions from another back end's manifest, with this one's integers.

    Args:
        expected: Descriptions from the manifest.
        found: The model's variables.

    Returns:
        The same, in which an integer dtype is that of the variable it is for.
    """
    here = {entry.key: str(entry.variable.dtype) for entry in found}

    def translated(entry: Mapping[str, Any]) -> Mapping[str, Any]:
        dtypes = entry["dtype"], here.get(entry["key"], "")
        return {**entry, "dtype": dtypes[1]} if all("int" in name for name in dtypes) else entry

    return [translated(entry) for entry in expected]


def converted(array: np.ndarray, entry: StateVariable) -> np.ndarray:
    """Returns an array of the backup in the dtype of its variable, an integer as well.

    Args:
        array: From the backup.
        entry: The variable; of a seed the lower bits are taken.

    Raises:
        ConfigError: A number is beyond the dtype's range.
    """
    dtype, path = numpy_dtype(str(entry.variable.dtype)), entry.path
    if array.dtype == dtype:
        return array
    result = array.astype(dtype)
    if SEED not in path and not np.array_equal(result.astype(object), array.astype(object)):
        raise ConfigError(
            f"Expected numbers that {dtype} holds, in which this back end keeps {path!r}. "
            f"Received: {array.ravel()[:3].tolist()} from the backup. Go on under the back end "
            "that made it, or delete the backup to start anew."
        )
    return result
