"""Keras on JAX, on several processes: all of them switch precision before the same step.

    python examples/distributed/keras_jax.py --coordinator localhost:12355 --processes 2 --process 0
    python examples/distributed/keras_jax.py --coordinator localhost:12355 --processes 2 --process 1

Give the lines in two terminals, or on two machines; the coordinator is process 0's address. On TPU
pods and under Slurm leave all three options out: `jax.distributed.initialize()` finds them. The
data are scikit-learn's handwritten digits, of which each process has its own part.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--coordinator", metavar="HOST:PORT")
    parser.add_argument("--policy", default="auto", help="a policy, or a JSON configuration")
    parser.add_argument("--backup", metavar="FOLDER", help="to go on from after a crash")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    return parser.parse_args(arguments)


def connect(given: argparse.Namespace) -> None:
    """Forms the cluster: before anything else uses JAX, the import of Keras included."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        given.coordinator, given.processes, given.process, heartbeat_timeout_seconds=60
    )


def train(given: argparse.Namespace) -> dict[str, Any]:
    """Trains on this process; process 0 prints."""
    import keras

    from deepseek_hpf import MixedPrecisionPolicy
    from deepseek_hpf.callbacks import BackupAndRestore, DynamicPrecision
    from deepseek_hpf.data import digits

    devices = keras.distribution.list_devices()
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    )
    keras.utils.set_random_seed(0)  # the same on all processes
    (images, classes), _ = digits()
    # Each process takes its own part, of the same length on all.
    count = len(classes) // jax.process_count()
    own = slice(jax.process_index(), count * jax.process_count(), jax.process_count())
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    is_file = given.policy.endswith(".json")
    policy = (MixedPrecisionPolicy.from_json if is_file else MixedPrecisionPolicy)(given.policy)
    callbacks = [DynamicPrecision(policy)]
    if given.backup:
        callbacks.append(BackupAndRestore(f"{given.backup}/process{jax.process_index()}"))
    history = model.fit(
        images[own],
        classes[own],
        batch_size=given.batch_size,
        epochs=given.epochs,
        shuffle=False,
        verbose=2 if jax.process_index() == 0 else 0,
        callbacks=callbacks,
    )
    return history.history


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Connects to the other processes, trains, and returns the history."""
    given = parse(arguments)
    connect(given)
    return train(given)


if __name__ == "__main__":
    main()
