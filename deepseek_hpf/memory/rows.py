"""A batch of as many rows as wanted, from a few of them."""

from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.synthetic_batch import synthetic_batch
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.tuning.training_step import unpacked

MOST_KEPT = 256  # rows of a sample that are carried about; they are repeated for a larger batch


def sample_of(model: keras.Model, sample: Any) -> tuple[Any, ...]:
    """The first rows of a sample as NumPy arrays; made up where there is none.

    Args:
        model: The model; it has to say what it takes where there is no sample.
        sample: `(x, y)` or `(x, y, sample_weight)`, or None.

    Returns:
        `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ConfigError: It is no batch, or has no rows; or there is none and the model does not tell.
    """
    return synthetic_batch(model, 1) if sample is None else first_rows(sample)


def first_rows(sample: Any) -> tuple[Any, ...]:
    """The first rows of a sample as NumPy arrays, float64 as Keras's float dtype.

    Args:
        sample: `(x, y)` or `(x, y, sample_weight)` of arrays or structures of them.

    Returns:
        The same with at most `MOST_KEPT` rows.

    Raises:
        ConfigError: It is no batch, or has no rows.

    Example:
        >>> x, y = first_rows((np.ones((1000, 2)), np.ones(1000)))
        >>> x.shape, str(y.dtype)
        ((256, 2), 'float32')
    """
    x, y, weights = unpacked(sample)
    parts = (x, y) if weights is None else (x, y, weights)
    return tuple(keras.tree.map_structure(_first, part) for part in parts)


def rows_of(sample: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """A batch of the rows of a sample, over and over.

    Args:
        sample: NumPy arrays.
        rows: How many.

    Returns:
        The batch.

    Example:
        >>> rows_of((np.array([1, 2]), None), 3)
        (array([1, 2, 1]), None)
    """
    return _mapped(sample, lambda array: array[np.arange(rows) % len(array)])


def shapes_of(sample: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """A batch of the first row of a sample, over and over, which takes no memory.

    Args:
        sample: NumPy arrays.
        rows: How many.

    Returns:
        Views.

    Example:
        >>> (x,) = shapes_of((np.ones((1, 5)),), 1000000)
        >>> x.shape, x.strides
        ((1000000, 5), (0, 8))
    """
    return _mapped(sample, lambda array: np.broadcast_to(array[:1], (rows, *array.shape[1:])))


def _mapped(sample: tuple[Any, ...], function: Any) -> tuple[Any, ...]:
    def each(value: Any) -> Any:
        return None if value is None else function(value)

    return tuple(keras.tree.map_structure(each, part) for part in sample)


def _first(value: Any) -> Any:
    if value is None:
        return None
    try:
        array = np.asarray(value[:MOST_KEPT])
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"Expected `sample` to be (x, y) of arrays. Received one of {type(value).__name__}."
        ) from error
    if not array.ndim or not len(array):
        raise ConfigError("Expected `sample` to have rows. Received an array without.")
    return array.astype(keras.config.floatx()) if array.dtype == np.float64 else array
