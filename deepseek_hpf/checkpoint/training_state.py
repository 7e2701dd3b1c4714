"""Everything that a training run consists of, enumerated, read and written back bit for bit.

A run that continues with the same bits needs more than weights: the optimizer's slots, counters and
loss scale, the masters it keeps, the state of every random seed, and, inside an epoch, what the
metrics have summed up so far. All of it lives in Keras variables, and this module is the one place
that lists them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import keras
import ml_dtypes
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random import seed_generator

from deepseek_hpf.adapters.forward_state import carried_states
from deepseek_hpf.errors import ConfigError

AUTO_NUMBER = re.compile(r"_\d+(?=[/_]|$)")
DIFFERENCES_SHOWN = 5


@runtime_checkable
class HasState(Protocol):
    """What else a run may consist of: a controller, a plan, a data source.

    The state is a mapping of names to NumPy arrays or to JSON values (numbers, strings, booleans,
    None, lists and mappings of them), whole at any time between two training steps.
    """

    def get_state(self) -> Mapping[str, Any]:
        """Returns the state as NumPy arrays and JSON values."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        ...


@dataclass(frozen=True, slots=True)
class StateVariable:
    """One variable of a run, with its place in it.

    Args:
        section: `"model"`, `"states"`, `"optimizer"`, `"metrics"` or `"random"`.
        index: Its place within the section; the order is the order of creation.
        variable: The Keras variable.
    """

    section: str
    index: int
    variable: Any

    @property
    def key(self) -> str:
        """Name of the array that holds its value, unique in a run."""
        return f"{self.section}/{self.index:05d}"

    @property
    def path(self) -> str:
        """Keras's path of the variable, for people."""
        return str(self.variable.path)

    def describe(self) -> dict[str, Any]:
        """What a manifest holds about it: key, path, shape and dtype."""
        return {
            "key": self.key,
            "path": self.path,
            "shape": [int(size) for size in self.variable.shape],
            "dtype": str(self.variable.dtype),
        }


def training_variables(model: Any, *, metrics: bool) -> list[StateVariable]:
    """Lists the variables of a run, each once.

    `"model"` holds trainable and other weights and the states of the seed generators that belong to
    layers; `"states"` what stateful RNNs carry from batch to batch; `"optimizer"` all that the
    optimizer made, wrapper and inner optimizer alike; `"random"` the state of the seed generator
    that `keras.random` falls back to, if it was ever used.

    Args:
        model: A built Keras model with a built optimizer, or with none.
        metrics: Whether to list what the metrics have summed up as well: needed inside an epoch
            only.

    Returns:
        The variables in the order of their sections.
    """
    sections: dict[str, Iterable[Any]] = {"model": model.variables}
    sections["states"] = carried_states(model)
    if getattr(model, "optimizer", None) is not None:
        sections["optimizer"] = model.optimizer.variables
    if metrics:
        sections["metrics"] = model.metrics_variables
    generator = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    if generator is not None:
        sections["random"] = [generator.state]
    seen: set[int] = set()
    listed = []
    for section, variables in sections.items():
        own = {id(v): v for v in variables if id(v) not in seen}
        listed += [StateVariable(section, index, v) for index, v in enumerate(own.values())]
        seen.update(own)
    return listed


def read_value(variable: Any) -> np.ndarray:
    """Copies a variable to the host without changing a bit.

    Args:
        variable: A Keras variable of any numeric dtype.

    Returns:
        Its value as an array of the variable's own dtype: PyTorch hands bfloat16 over as float32,
        which the conversion back undoes exactly.
    """
    value = np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)))
    return value.astype(numpy_dtype(str(variable.dtype)), copy=False)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """NumPy's dtype of a Keras dtype name, bfloat16 and the float8 formats included."""
    extended = getattr(ml_dtypes, name, None)
    return np.dtype(name if extended is None else extended)


def is_built(model: Any) -> bool:
    """Whether every layer has its variables; an optimizer can be built as soon as this is so."""
    return all(layer.built for layer in model._flatten_layers())


def has_built_metrics(model: Any) -> bool:
    """Whether compiled metrics and losses have theirs: TensorFlow's first step makes them."""
    parts = [getattr(model, name, None) for name in ("_compile_metrics", "_compile_loss")]
    return all(part is None or part.built for part in parts)


def ensure_global_seed_generator() -> None:
    """Makes the seed generator that `keras.random` falls back to, so that its state can be set."""
    seed_generator.global_seed_generator()


def differences(expected: Sequence[Mapping[str, Any]], found: Sequence[StateVariable]) -> list[str]:
    """Says, variable by variable, where a backup and a model do not agree.

    Numbers that Keras appends to names are left out of the comparison (`dense_1` is `dense` when a
    notebook makes the model anew); order, shape and dtype are not.

    Args:
        expected: Descriptions from the backup's manifest (`StateVariable.describe`).
        found: The model's variables.

    Returns:
        One sentence per difference; empty if the backup fits.
    """
    saved = {entry["key"]: entry for entry in expected}
    present = {entry.key: entry for entry in found}
    lines = []
    for key in sorted(saved.keys() | present.keys()):
        old, new = saved.get(key), present.get(key)
        if new is None:
            lines.append(f"{_section(key)} variable {_text(old)} of the backup has no counterpart")
        elif old is None:
            lines.append(f"{_section(key)} variable {_text(new.describe())} is not in the backup")
        elif not _agree(old, new.describe()):
            lines.append(
                f"{_section(key)} variable: the backup holds {_text(old)}, "
                f"the run has {_text(new.describe())}"
            )
    return lines


def check_fit(
    expected: Sequence[Mapping[str, Any]], found: Sequence[StateVariable], source: str
) -> None:
    """Refuses a backup that does not fit the model.

    Args:
        expected: Descriptions from the backup's manifest.
        found: The model's variables.
        source: Path of the backup, for the message.

    Raises:
        ConfigError: A variable is missing, superfluous, or of another name, shape or dtype.
    """
    lines = differences(expected, found)
    if not lines:
        return
    more = len(lines) - DIFFERENCES_SHOWN
    shown = "\n  ".join(lines[:DIFFERENCES_SHOWN] + ([f"and {more} more"] if more > 0 else []))
    raise ConfigError(
        f"The backup does not fit this model and its optimizer; nothing was restored.\n  {shown}\n"
        "Build and compile the model as in the interrupted run, or delete the backup to start "
        "anew. "
        f"Received: backup={source!r}"
    )


def optimizer_description(optimizer: Any) -> dict[str, Any] | None:
    """Class and settings of an optimizer as JSON values, without what is a variable anyway.

    Args:
        optimizer: A Keras optimizer, or None.

    Returns:
        Class names and configurations, wrapper outside, or None.
    """
    if optimizer is None:
        return None
    serialized = keras.saving.serialize_keras_object(optimizer)
    return _without_variables(json.loads(json.dumps(serialized, default=str)))


def _without_variables(value: Any) -> Any:
    """Drops learning rates that are plain numbers (a variable holds them), and names."""
    if isinstance(value, list):
        return [_without_variables(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_variables(item)
        for key, item in value.items()
        if key not in ("name", "registered_name", "module", "build_config", "compile_config")
        and not (key == "learning_rate" and isinstance(item, int | float))
    }


def _section(key: str) -> str:
    return key.partition("/")[0]


def _text(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "nothing"
    return f"{entry['path']!r} {tuple(entry['shape'])} {entry['dtype']}"


def _agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if _name(old) != _name(new):
        return False
    return bool(old["shape"] == new["shape"] and old["dtype"] == new["dtype"])


def _name(entry: Mapping[str, Any]) -> str:
    """The path without appended numbers; of an optimizer's variable only the end."""
    # Built within the first step, an optimizer's variables carry the step's name scopes as well.
    path = AUTO_NUMBER.sub("", entry["path"])
    return path.rpartition("/")[2] if _section(entry["key"]) == "optimizer" else path
