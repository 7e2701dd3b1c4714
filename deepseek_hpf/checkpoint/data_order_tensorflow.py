"""What a `tf.data` pipeline says about its order."""

from typing import Any

import tensorflow as tf


def has_global_seed() -> bool:
    """Whether TensorFlow's global seed was set, by `keras.utils.set_random_seed` or directly."""
    return tf.compat.v1.get_seed(None)[0] is not None


def dataset_problem(dataset: Any) -> str | None:
    """Says why the order of a pipeline cannot be reproduced in another process.

    Args:
        dataset: A `tf.data.Dataset`.

    Returns:
        A sentence, or None if no shuffle and no generator in it speaks against it.
    """
    for part in _parts(dataset):
        name = type(part).__name__
        if "Shuffle" in name and getattr(part, "_reshuffle_each_iteration", False):
            return (
                "`Dataset.shuffle` with `reshuffle_each_iteration=True` (the default) orders an "
                "epoch by how "
                "often this process has iterated before"
            )
        if "Shuffle" in name and _is_unseeded(part):
            return "`Dataset.shuffle` has no seed, and no global seed is set"
    return None


def _is_unseeded(part: Any) -> bool:
    seeds = [getattr(part, name, None) for name in ("_seed", "_seed2")]
    return all(seed is not None and int(seed) == 0 for seed in seeds)


def _parts(dataset: Any) -> list[Any]:
    """The pipeline's stages, from its end to its sources."""
    inputs = getattr(dataset, "_inputs", None)
    found = [dataset]
    for source in inputs() if callable(inputs) else ():
        found += _parts(source)
    return found
