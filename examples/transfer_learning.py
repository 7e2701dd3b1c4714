"""Transfer learning in mixed precision: a frozen body in low precision, a new head on top.

    KERAS_BACKEND=tensorflow python examples/transfer_learning.py --policy mixed_bfloat16

A network learns to tell the digits 0 to 4 apart in float32 and is saved. It is loaded and frozen,
and a new head learns 5 to 9 from a few images of each. The callback gives the policy to all layers,
those that were loaded in float32 among them; their weights stay float32, so that the body can be
thawed and trained on, here at a thirtieth of the rate.
Where there is a network, `--dataset` takes other TFDS image sets with ten classes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import deepseek_hpf as hpf

Images = tuple[NDArray[np.float32], NDArray[np.int64]]
HALF = 5


def create_model(side: int, channels: int) -> keras.Model:
    """Returns a small convolutional network for five classes."""
    layers = keras.layers
    x = inputs = keras.Input((side, side, channels))
    for number, width in enumerate((32, 64)):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{number}")(x)
        x = layers.Activation("relu", name=f"relu{number}")(x)
        x = layers.MaxPooling2D(name=f"pool{number}")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(HALF, activation="softmax", name="head")(x))


def compiled(model: keras.Model, rate: float) -> keras.Model:
    """Compiles a model, which a change of `trainable` asks for."""
    adam = keras.optimizers.Adam(rate)
    model.compile(adam, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def split(data: Images) -> tuple[Images, Images]:
    """The first five classes, and the others, counted from 0."""
    images, labels = data
    first = labels < HALF
    return (images[first], labels[first]), (images[~first], labels[~first] - HALF)


def few(data: Images, count: int) -> Images:
    """The first images of each class."""
    images, labels = data
    index = np.concatenate([np.flatnonzero(labels == each)[:count] for each in range(HALF)])
    return images[index], labels[index]


def fit(model: keras.Model, data: Images, epochs: int, *callbacks: keras.callbacks.Callback) -> Any:
    """Trains without a word."""
    return model.fit(*data, batch_size=32, epochs=epochs, verbose=0, callbacks=list(callbacks))


def transferred(path: Path) -> keras.Model:
    """Returns the saved network with its body frozen and a new head."""
    base = keras.models.load_model(path)
    body = keras.Model(base.input, base.get_layer("features").output, name="body")
    body.trainable = False
    inputs = keras.Input(base.input_shape[1:])
    head = keras.layers.Dense(HALF, activation="softmax", name="new_head")
    # `training=False`: the statistics of its normalization are frozen, too.
    return keras.Model(inputs, head(body(inputs, training=False)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="digits", help="digits, or a TFDS image set")
    parser.add_argument("--policy", default="auto", help="auto, or a Keras policy name")
    parser.add_argument("--images", type=int, default=40, help="of each new class")
    parser.add_argument("--epochs", type=int, default=20, help="of each of the three trainings")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains three times, prints the accuracies, and returns them."""
    given = parse(arguments)
    keras.utils.set_random_seed(given.seed)
    known, new = split(load(given.dataset, "train"))
    known_test, new_test = split(load(given.dataset, "test"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "first_half.keras"
        base = compiled(create_model(known[0].shape[1], known[0].shape[-1]), 3e-3)
        fit(base, known, given.epochs)
        found["digits 0 to 4, float32"] = base.evaluate(*known_test, verbose=0)[1]
        base.save(path)
        model = compiled(transferred(path), 1e-2)
    policy = hpf.MixedPrecisionPolicy(given.policy)
    overrides = hpf.callbacks.PrecisionOverrides(policy)
    fit(model, few(new, given.images), given.epochs, overrides)
    print(overrides.report)
    found[f"digits 5 to 9, a new head, {policy.name}"] = model.evaluate(*new_test, verbose=0)[1]
    model.get_layer("body").trainable = True
    compiled(model, 3e-4)
    fit(model, few(new, given.images), given.epochs, overrides)
    found[f"digits 5 to 9, thawed, {policy.name}"] = model.evaluate(*new_test, verbose=0)[1]
    for name, accuracy in found.items():
        print(f"{name:40} {accuracy:.1%}")
    return found


def load(dataset: str, name: str) -> Images:
    """Images in float32 from 0 to 1, and their labels."""
    if dataset == "digits":
        return hpf.data.digits(name, size=16)
    return hpf.data.images(dataset, name)


if __name__ == "__main__":
    main()
