"""Keras on TensorFlow, on several devices of one machine: `MirroredStrategy`.

    python examples/distributed/keras_tensorflow.py --replicas 2 --policy mixed_float16
    python examples/distributed/keras_tensorflow.py --damage 100

Where the machine has GPUs, each replica gets one; else the CPU is taken as several logical devices,
which shows the same without the gain. The data are scikit-learn's handwritten digits. `--damage`
writes a NaN into one of the images: the step that meets it is skipped on all replicas.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import tensorflow as tf


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--policy", default="auto", help="a policy, or a JSON configuration")
    parser.add_argument("--damage", type=int, metavar="IMAGE", help="number of the image, from 0")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64, help="of all replicas together")
    return parser.parse_args(arguments)


def find_devices(replicas: int) -> list[str]:
    """Returns a device for each replica. Nothing may have used TensorFlow yet, as Keras does."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) >= replicas:
        return [f"GPU:{index}" for index in range(replicas)]
    parts = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    return [f"CPU:{index}" for index in range(replicas)]


def train(given: argparse.Namespace, devices: Sequence[str]) -> dict[str, Any]:
    """Trains on all replicas, and returns the history."""
    import keras

    from deepseek_hpf import MixedPrecisionPolicy
    from deepseek_hpf.callbacks import DynamicPrecision
    from deepseek_hpf.data import digits

    keras.utils.set_random_seed(0)
    (images, classes), test = digits()
    if given.damage is not None:
        images[given.damage, 0, 0, 0] = float("nan")
    is_file = given.policy.endswith(".json")
    policy = (MixedPrecisionPolicy.from_json if is_file else MixedPrecisionPolicy)(given.policy)
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope(), policy.scope():
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
    history = model.fit(
        images,
        classes,
        validation_data=test,
        batch_size=given.batch_size,
        epochs=given.epochs,
        verbose=2,
        callbacks=[DynamicPrecision(policy)],
    )
    done, skipped = model.optimizer.iterations.numpy(), model.optimizer.skipped_steps.numpy()
    print(f"{len(devices)} replicas, {policy.name}: {done} steps done, {skipped} skipped on all")
    return history.history


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains as the command line says."""
    given = parse(arguments)
    return train(given, find_devices(given.replicas))


if __name__ == "__main__":
    main()
