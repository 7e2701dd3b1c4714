"""Input pipelines of tf.data."""

from typing import Any

import tensorflow as tf

from deepseek_hpf.data.batches import Arrays


def tensorflow_batches(arrays: Arrays, batch_size: int, *, shuffle: bool, seed: int) -> Any:
    """Returns a `tf.data.Dataset` of batches `(inputs, labels)` of arrays in memory.

    Args:
        arrays: Inputs and labels.
        batch_size: Examples a batch.
        shuffle: Whether to shuffle anew each epoch and to leave out the last, smaller batch.
        seed: Of the order.

    Returns:
        The dataset, of known length.
    """
    dataset = tf.data.Dataset.from_tensor_slices(arrays)
    if shuffle:
        dataset = dataset.shuffle(len(arrays[1]), seed=seed, reshuffle_each_iteration=True)
    return dataset.batch(batch_size, drop_remainder=shuffle).prefetch(tf.data.AUTOTUNE)


def tensorflow_images(
    builder: Any, split: str, batch_size: int, *, shuffle: bool, seed: int
) -> Any:
    """Returns a `tf.data.Dataset` of batches of a prepared TFDS image dataset.

    The order is fixed by the seed: the files are read one after the other. The shuffle buffer holds
    10,000 images.

    Args:
        builder: A `tfds.core.DatasetBuilder` that is prepared.
        split: Name of the split.
        batch_size: Images a batch.
        shuffle: Whether to shuffle anew each epoch and to leave out the last, smaller batch.
        seed: Of the order.

    Returns:
        The dataset: images float32 in [0, 1], labels int64.
    """
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    if shuffle:
        dataset = dataset.shuffle(10_000, seed=seed, reshuffle_each_iteration=True)
    dataset = dataset.batch(batch_size, drop_remainder=shuffle)
    dataset = dataset.map(_to_unit_range, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def leave_accelerators_alone() -> None:
    """Keeps TensorFlow, used as a reader beside another back end, from taking the GPU's memory."""
    tf.config.set_visible_devices([], "GPU")


def _to_unit_range(examples: Any) -> tuple[Any, Any]:
    return tf.cast(examples["image"], tf.float32) / 255.0, examples["label"]
