"""Casts and prefetches a `tf.data.Dataset`."""

from typing import Any

import tensorflow as tf

from deepseek_hpf.data.batch_inputs import with_inputs


def is_dataset(data: Any) -> bool:
    """Whether it is a `tf.data.Dataset` (one that is not distributed).

    Args:
        data: Anything.

    Returns:
        Whether it is.
    """
    return isinstance(data, tf.data.Dataset)


def ahead(dataset: Any, dtype: str | None, depth: int) -> Any:
    """The same batches, ready ahead, on the GPU where there is one and no strategy is at work.

    Args:
        dataset: A `tf.data.Dataset` of batches.
        dtype: Of floating inputs; None leaves them.
        depth: Batches that are ready at most.

    Returns:
        A `tf.data.Dataset`. Its order is that of the given one.
    """
    is_tuple = isinstance(dataset.element_spec, tuple)
    if dtype is not None:
        dataset = dataset.map(
            lambda *parts: _cast_inputs(parts if is_tuple else parts[0], dtype),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
    gpus = tf.config.list_logical_devices("GPU")
    if gpus and not tf.distribute.has_strategy():
        to_device = tf.data.experimental.prefetch_to_device(gpus[0].name, buffer_size=depth)
        return dataset.apply(to_device)
    return dataset.prefetch(depth)


def _cast_inputs(batch: Any, dtype: str) -> Any:
    return with_inputs(batch, lambda leaf: _cast(leaf, dtype), lambda leaf: leaf)


def _cast(leaf: Any, dtype: str) -> Any:
    return tf.cast(leaf, dtype) if leaf.dtype.is_floating else leaf
