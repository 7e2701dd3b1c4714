"""A training that outgrows float16: loss scaling gives up, dynamic precision finds the layer.

    KERAS_BACKEND=tensorflow python examples/float16_overflow.py --events overflow.jsonl
    hpf events overflow.jsonl

The network is residual and not normalized between its blocks, so the residual stream grows from
block to block, and as it learns: at first to about 60,000, within some steps past 65,504, the
largest number that float16 has. Float32 trains on. Keras's `mixed_float16` skips each such step and
halves the loss scale, which is of no help, until the scale is 0. Under `callbacks.DynamicPrecision`
the layers at fault go to float32, and the scale is kept.

The training losses end below a hundredth of those at the start, and there depend on rounding:
float32 with its first weights a millionth larger ends up to 8 % away from float32.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

import deepseek_hpf as hpf

BLOCKS = 20
WIDTH = 64


def create_model(steps: int) -> keras.Model:
    """Returns a residual network for digits, compiled: Adam, to a rate of zero along a cosine."""
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten(name="flatten")(x)
    x = dense("stem")(x)
    for number in range(BLOCKS):
        hidden = dense(f"block{number}_hidden", activation="relu")(x)
        out = dense(f"block{number}_out")(hidden)
        x = keras.layers.Add(name=f"block{number}_add")([x, out])
    x = keras.layers.LayerNormalization(name="norm")(x)
    model = keras.Model(inputs, keras.layers.Dense(10, dtype="float32", name="logits")(x))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-4, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def dense(name: str, activation: str | None = None) -> keras.layers.Dense:
    """A layer that starts as He et al. would have it."""
    return keras.layers.Dense(WIDTH, activation, kernel_initializer="he_normal", name=name)


def train(policy: str, callbacks: Sequence[Any], seed: int, epochs: int) -> dict[str, Any]:
    """Trains once, and returns the history and how the loss scaling ended."""
    keras.utils.set_random_seed(seed)
    digits, test = hpf.data.digits(batch_size=32, seed=seed)
    keras.utils.set_random_seed(seed)
    with hpf.MixedPrecisionPolicy(policy).scope():
        model = create_model(epochs * len(digits))
    history = model.fit(
        digits, validation_data=test, epochs=epochs, verbose=0, callbacks=[*callbacks]
    ).history
    return {
        "history": history,
        "scale": float(getattr(model.optimizer, "dynamic_scale", math.nan)),
        "skipped": epochs * len(digits) - int(model.optimizer.iterations),
    }


def events_of(history: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Returns the events of all epochs in their order."""
    return [event for epoch in history.get("precision_events", []) for event in epoch]


def row(name: str, result: dict[str, Any]) -> str:
    """Returns a line of the table."""
    history = result["history"]
    return (
        f"{name:26} {history['loss'][-1]:9.4f} {history['val_loss'][-1]:9.4f} "
        f"{history['val_accuracy'][-1]:9.2%} {result['scale']:12g} {result['skipped']:8}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--events", type=Path, metavar="FILE", help="for the controller's events")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Trains three times, prints what came of it, and returns it."""
    given = parse(arguments)
    # The usual 2,000 steps to a larger scale are more than this run has.
    config = hpf.PrecisionConfig.from_dict(
        {"policy": "mixed_float16", "loss_scale": {"growth_steps": 100}}
    )
    dynamic = hpf.callbacks.DynamicPrecision(config, events=given.events)
    contenders = {
        "Keras float32": ("float32", []),
        "Keras mixed_float16": ("mixed_float16", []),
        "DynamicPrecision, float16": ("mixed_float16", [dynamic]),
    }
    results = {}
    print(f"{'':26} {'loss':>9} {'test loss':>9} {'accuracy':>9} {'loss scale':>12} {'skipped':>8}")
    for name, (policy, callbacks) in contenders.items():
        results[name] = train(policy, callbacks, given.seed, given.epochs)
        print(row(name, results[name]), flush=True)
    for event in events_of(results["DynamicPrecision, float16"]["history"]):
        print(
            f"step {event['step']:4}: {event['kind']} {event.get('block', '')}: {event['reason']}"
        )
    return results


if __name__ == "__main__":
    main()
