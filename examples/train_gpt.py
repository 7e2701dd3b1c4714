"""Trains a character-level GPT on the source code of Python's standard library, then lets it write.

    KERAS_BACKEND=tensorflow python examples/train_gpt.py --policy mixed_bfloat16 --epochs 5

The text is on every machine; no network is needed. With `--controller threshold` the precision
follows the training, layer by layer, and each change is printed with its reason. On a GPU try
`--blocks 6 --width 384 --length 256 --batch-size 64 --characters 4000000 --epochs 20`.
"""

import argparse
import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import deepseek_hpf as hpf
from deepseek_hpf.bench.other_models import gpt
from deepseek_hpf.data.python_source_dataset import encoded

HEADS = 4
TEMPERATURE = 0.7


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", default="auto", help="auto, or a Keras policy name")
    parser.add_argument("--config", metavar="FILE", help="a JSON configuration")
    parser.add_argument(
        "--controller", help="threshold, adaptive, schedule or static: precision by the run"
    )
    parser.add_argument("--events", metavar="FILE", help="for the controller's events")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--width", type=int, default=64, help=f"a multiple of {HEADS}")
    parser.add_argument("--length", type=int, default=64, help="characters the model looks at")
    parser.add_argument("--characters", type=int, default=400_000, help="of the library's source")
    parser.add_argument("--prompt", default="def ", help="text that the model continues")
    parser.add_argument("--write", type=int, default=200, help="characters that it writes")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def create_model(given: argparse.Namespace, steps: int) -> keras.Model:
    """Returns the GPT, compiled: Adam at a rate that falls to zero along a cosine."""
    vocabulary = len(hpf.data.PYTHON_CHARACTERS)
    model = gpt(given.blocks, given.width, HEADS, given.length, vocabulary)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(given.learning_rate, decay_steps=steps)
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


def precision(given: argparse.Namespace, policy: hpf.MixedPrecisionPolicy) -> Any:
    """Returns the callback that brings the policy: as it is, or as a controller moves it."""
    if given.controller is None:
        return hpf.callbacks.PrecisionOverrides(policy)
    return hpf.callbacks.DynamicPrecision(policy, given.controller, events=given.events)


def continued(model: keras.Model, text: str, count: int, random: np.random.Generator) -> str:
    """Writes on, one character after the other."""
    length = model.input_shape[1]
    written = encoded(text)
    for _ in range(count):
        seen = written[-length:]
        # What stands behind a character does not change what the model says of it.
        window = np.pad(seen, (0, length - len(seen)))[None]
        logits = model.predict_on_batch(window)[0, len(seen) - 1].astype("float64")
        noise = random.gumbel(size=logits.shape)  # the largest is then a draw from the softmax
        written = np.append(written, np.argmax(logits / TEMPERATURE + noise).astype("int32"))
    return "".join(hpf.data.PYTHON_CHARACTERS[index] for index in written)


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Trains, prints what the model writes, and returns the history."""
    given = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("deepseek_hpf").setLevel(logging.INFO)
    keras.utils.set_random_seed(given.seed)
    config = hpf.PrecisionConfig.from_json(given.config) if given.config else None
    policy = hpf.MixedPrecisionPolicy(given.policy, config=config)
    train, validation = hpf.data.python_source(
        batch_size=given.batch_size,
        length=given.length,
        size=given.characters,
        seed=given.seed,
    )
    with policy.scope():
        model = create_model(given, steps=given.epochs * len(train))
    history = model.fit(
        train,
        validation_data=validation,
        epochs=given.epochs,
        verbose=2,
        callbacks=[precision(given, policy)],
    ).history
    prompt = given.prompt or "\n"
    print(continued(model, prompt, given.write, np.random.default_rng(given.seed)))
    return history


if __name__ == "__main__":
    main()
