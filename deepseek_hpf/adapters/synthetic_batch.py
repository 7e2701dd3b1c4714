"""A batch made up from what a model takes, for measuring where no data are given."""

from typing import Any

import keras
import numpy as np

from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError

_NUMPY = frozenset(
    f"{kind}{bits}"
    for kind, sizes in (
        ("int", (8, 16, 32, 64)),
        ("uint", (8, 16, 32, 64)),
        ("float", (16, 32, 64)),
    )
    for bits in sizes
)
FREE_SIZE = 16
"""What a dimension that the model leaves open is given, e.g. the length of a sequence."""


def synthetic_batch(model: keras.Model, rows: int = 16, seed: int = 0) -> tuple[Any, Any]:
    """Makes a batch of random inputs and targets that fit a model and its loss.

    Inputs are standard normal; those of integer dtype, and those that an `Embedding` reads, are
    indices. Targets are class indices for a sparse loss, one-hot rows for a categorical one, 0 and
    1 for a binary one, standard normal else. What is computed of them means nothing; time, memory,
    dtypes and operations are those of real data.

    Args:
        model: A built model whose inputs are known: functional, or sequential with an `Input`.
        rows: Number of rows.
        seed: Of the random numbers.

    Returns:
        `(x, y)`, NumPy arrays in the structure of the model's inputs and outputs.

    Raises:
        ConfigError: The model does not say what it takes, e.g. a subclassed one.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> model.compile("sgd", "sparse_categorical_crossentropy")
        >>> x, y = synthetic_batch(model, rows=4)
        >>> x.shape, y.shape, y.dtype
        ((4, 8), (4,), dtype('int32'))
    """
    rng = np.random.default_rng(seed)
    try:
        inputs, outputs = model._inputs_struct, model._outputs_struct
    except AttributeError:
        inputs = outputs = None
    if isinstance(model, keras.Sequential) and model.built and model._functional is not None:
        inputs, outputs = model._functional._inputs_struct, model._functional._outputs_struct
    if inputs is None or outputs is None:
        raise ConfigError(
            f"model {shown(model.name)} does not say what it takes (it is subclassed, or not "
            "built). Give a batch of data."
        )
    highest = _indices(model)
    x = keras.tree.map_structure(lambda each: _input(each, rows, highest, rng), inputs)
    places = iter(range(len(keras.tree.flatten(outputs))))
    y = keras.tree.map_structure(
        lambda each: _target(each, _loss_name(model, each, next(places)), rows, rng), outputs
    )
    return x, y


def _indices(model: keras.Model) -> dict[int, int]:
    """The number of indices allowed for each input that goes into an `Embedding`, by identity."""
    layers = [each for each in model._flatten_layers() if isinstance(each, keras.layers.Embedding)]
    found: dict[int, int] = {}
    for layer in layers:
        for node in layer._inbound_nodes:
            for tensor in node.input_tensors:
                size = min(layer.input_dim, found.get(id(tensor), layer.input_dim))
                found[id(tensor)] = size
    found[0] = min((layer.input_dim for layer in layers), default=2)
    return found


def _input(spec: Any, rows: int, highest: dict[int, int], rng: np.random.Generator) -> Any:
    shape = _shape(spec, rows)
    dtype = keras.backend.standardize_dtype(spec.dtype)
    if id(spec) in highest or "int" in dtype:
        values = rng.integers(0, highest.get(id(spec), highest[0]), shape)
        return values.astype(dtype if dtype in _NUMPY else "float32")
    if dtype == "bool":
        return rng.random(shape) < 0.5
    return rng.normal(size=shape).astype(dtype if dtype in _NUMPY else "float32")


def _target(spec: Any, loss: str, rows: int, rng: np.random.Generator) -> Any:
    shape = _shape(spec, rows)
    classes = max(shape[-1], 1)
    if "sparse" in loss:
        return rng.integers(0, classes, shape[:-1]).astype("int32")
    if "categorical" in loss:
        return np.eye(classes, dtype="float32")[rng.integers(0, classes, shape[:-1])]
    if "binary" in loss or "hinge" in loss:
        return rng.integers(0, 2, shape).astype("float32")
    return rng.normal(size=shape).astype("float32")


def _loss_name(model: keras.Model, output: Any, place: int) -> str:
    """The name of an output's loss, in snake case; empty where the model has none."""
    held = getattr(model, "_compile_loss", None)
    loss = None if held is None else held._user_loss
    if isinstance(loss, dict):
        names = getattr(model, "output_names", None) or list(loss)
        loss = loss.get(names[place]) if place < len(names) else None
    elif isinstance(loss, list | tuple):
        loss = loss[place] if place < len(loss) else None
    if loss is None:
        return ""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


def _shape(spec: Any, rows: int) -> tuple[int, ...]:
    return (rows, *(FREE_SIZE if size is None else size for size in spec.shape[1:]))
