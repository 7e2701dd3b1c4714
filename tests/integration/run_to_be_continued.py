"""A training under dynamic precision, begun in one process and gone on with in another.

    python run_to_be_continued.py begin DIR
    python run_to_be_continued.py continue DIR

prints a line of JSON: what the run is made of at that moment.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import ops

import deepseek_hpf as hpf

STEPS, BATCH = 6, 4


class Fragile(keras.layers.Layer):
    """Nearly the identity; on the way it squares, and leaves float16's range from 0.9 on."""

    def call(self, x):
        return ops.sqrt(ops.square(x * 300.0) + 1.0) / 300.0


def create_model():
    keras.utils.set_random_seed(3)
    layers = [
        keras.layers.Dense(8, activation="relu", name="first"),
        keras.layers.BatchNormalization(name="norm"),
        Fragile(name="fragile"),
        keras.layers.Dropout(0.5, seed=4, name="dropout"),
        keras.layers.Dense(1, name="head"),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def data():
    random = np.random.default_rng(7)
    x = random.uniform(1.0, 2.0, (STEPS * BATCH, 3)).astype("float32")
    return x, 3.0 * x[:, :1]


def callbacks(folder):
    config = hpf.PrecisionConfig.from_json(folder / "precision.json")
    return [
        hpf.callbacks.DynamicPrecision(config, events=folder / "events.jsonl"),
        hpf.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
    ]


def state_of(model):
    """Weights, slots and seeds in their order, scale, counters, and the precision of each layer."""

    def values(variables):
        # Telemetry is made anew with each run.
        kept = [v for v in variables if "watched" not in v.name]
        return [np.asarray(ops.convert_to_numpy(v), "float64").ravel().tolist() for v in kept]

    seeds = [v for v in model.variables if "seed" in v.path]
    return {
        "weights": values(v for v in model.variables if "seed" not in v.path),
        "optimizer": values(model.optimizer.variables),
        "seeds": values(seeds),
        "dtypes": {layer.name: layer.compute_dtype for layer in model.layers},
        "scale": float(ops.convert_to_numpy(model.optimizer.dynamic_scale)),
        "skipped": int(ops.convert_to_numpy(model.optimizer.skipped_steps)),
    }


class Seen(keras.callbacks.Callback):
    """Takes down the state before the first step."""

    state = None

    def on_train_batch_begin(self, batch, logs=None):
        self.state = self.state or state_of(self.model)


def fit(folder, epochs):
    model, seen = create_model(), Seen()
    model.fit(
        *data(),
        batch_size=BATCH,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks(folder), seen],
    )
    return model, seen.state


def begin(folder):
    values = {"every": 2, "sample_every": 1, "max_blocks": 3, "underflow": 1.0}
    scale = {"initial_scale": 128.0, "growth_steps": 4}
    settings = {"policy": "mixed_float16", "loss_scale": scale, "dynamic": values}
    hpf.PrecisionConfig.from_dict(settings).to_json(folder / "precision.json")
    model, _ = fit(folder, 2)
    model.save(folder / "model.keras")
    return {"end": state_of(model)}


def go_on(folder):
    loaded = keras.models.load_model(folder / "model.keras", {"Fragile": Fragile})
    file = state_of(loaded)
    model, resumed = fit(folder, 3)
    return {"file": file, "resumed": resumed, "end": state_of(model)}


if __name__ == "__main__":
    do = {"begin": begin, "continue": go_on}[sys.argv[1]]
    print(json.dumps(do(Path(sys.argv[2]))))
