"""Whether a process that starts in the middle of a run sees an epoch's data in the same order.

A resumed run draws the batches that were already trained on and drops them. That ends with the same
bits only if the epoch brings the same batches in the same order again, in another process. Some
inputs cannot do so; what can be known about that is known here.
"""

from typing import Any

import keras

ADVICE = (
    "Give data whose order is a function of the epoch alone: arrays, a `keras.utils.PyDataset` "
    "without state of its own, or a `tf.data.Dataset` with "
    "`shuffle(seed=..., reshuffle_each_iteration=False)`."
)


def order_problem(epoch_iterator: Any) -> str | None:
    """Says why the order of an epoch cannot be reproduced in another process.

    Randomness inside a `map` or inside a user's own classes is not seen.

    Args:
        epoch_iterator: Keras's epoch iterator.

    Returns:
        A sentence, or None if nothing speaks against it.
    """
    adapter = epoch_iterator.data_adapter
    adapter = getattr(adapter, "source_adapter", adapter)  # of prefetched data
    describe = _PROBLEMS.get(type(adapter).__name__)
    problem = describe(adapter) if describe else None
    return problem or _steps_problem(epoch_iterator)


def _steps_problem(epoch_iterator: Any) -> str | None:
    steps, size = epoch_iterator.steps_per_epoch, epoch_iterator.data_adapter.num_batches
    if not steps or steps == size:
        return None
    return (
        f"with steps_per_epoch={steps} over data of {size or 'an unknown number of'} batches an "
        f"epoch continues "
        "where the one before it stopped, while a resumed run starts at the beginning of the data"
    )


def _array_problem(adapter: Any) -> str | None:
    # JAX and PyTorch permute with a global generator whose state is in the backup. TensorFlow's
    # stateful op is seeded from the global seed, and then repeats one permutation every epoch.
    if keras.backend.backend() != "tensorflow" or not adapter._shuffle:
        return None
    from deepseek_hpf.checkpoint.data_order_tensorflow import has_global_seed

    if has_global_seed():
        return None
    return (
        "TensorFlow shuffles the arrays from a random seed of its own; call "
        "`keras.utils.set_random_seed(...)` "
        "before `fit`, or pass `shuffle=False`"
    )


def _py_dataset_problem(adapter: Any) -> str | None:
    dataset = adapter.py_dataset
    base = keras.utils.PyDataset
    if dataset.num_batches is None:
        return "the `PyDataset` is infinite, and a resumed run starts at its first batch"
    if type(dataset).on_epoch_end is not base.on_epoch_end:
        name = type(dataset).__name__
        return f"`{name}.on_epoch_end` may reorder it, and what it did is not in a backup"
    return None


def _dataset_problem(adapter: Any) -> str | None:
    from deepseek_hpf.checkpoint.data_order_tensorflow import dataset_problem

    return dataset_problem(adapter._dataset)


def _generator_problem(adapter: Any) -> str | None:
    return (
        "a Python generator cannot start at an epoch, and a resumed run starts at its first batch"
    )


def _loader_problem(adapter: Any) -> str | None:
    loader = adapter._dataloader
    sampler = getattr(loader, "sampler", None)
    if getattr(loader, "generator", None) is None and getattr(sampler, "generator", None) is None:
        return None
    return "the `DataLoader` draws its order from a generator of its own, which is not in a backup"


_PROBLEMS = {
    "ArrayDataAdapter": _array_problem,
    "PyDatasetAdapter": _py_dataset_problem,
    "TFDatasetAdapter": _dataset_problem,
    "GeneratorDataAdapter": _generator_problem,
    "TorchDataLoaderAdapter": _loader_problem,
}
