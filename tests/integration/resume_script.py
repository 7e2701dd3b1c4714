"""A small run with everything that has to survive a kill; it stops where it is told to.

    python resume_script.py DIRECTORY MOMENT COUNT [dynamic] [reversed]

At the COUNT-th time that MOMENT comes it writes "waiting" and sleeps until it is killed.
"""

import os
import sys
import time

import keras
import numpy as np

import deepseek_hpf as hpf
from deepseek_hpf.checkpoint import backup_store

BATCH, STEPS, EPOCHS = 8, 5, 4
MOMENTS = ("step", "array", "fsync", "rename", "renamed", "remove")


class Batches(keras.utils.PyDataset):
    """Shuffled by Keras, augmented from NumPy's global generator."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(11)
        self.x = rng.normal(size=(BATCH * STEPS, 6)).astype("float32")
        self.y = rng.integers(0, 3, size=len(self.x))

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[rows] + np.random.normal(scale=0.1, size=(BATCH, 6)), self.y[rows]


def make_policy(dynamic=False):
    # A scale that overflows at first and grows soon: skips, back-off and growth are all in the run.
    scale = {"initial_scale": 2.0**19, "growth_steps": 3}
    clipping = {"kind": "anomaly", "z": 3.0}
    config = {"policy": "mixed_float16", "loss_scale": scale, "clipping": clipping}
    if dynamic:  # so restless that it switches in each epoch
        settings = {"every": 3, "sample_every": 1, "calm_steps": 3, "max_blocks": 2}
        config["dynamic"] = settings
        scale["initial_scale"] = 2.0**21
    return hpf.MixedPrecisionPolicy(config=hpf.PrecisionConfig.from_dict(config))


def train(directory=None, callbacks=(), overrides_first=True, dynamic=False):
    """Trains from the backup in `directory`, if there is one, to the end; without, from scratch."""
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    callback = hpf.callbacks.DynamicPrecision if dynamic else hpf.callbacks.PrecisionOverrides
    own = [callback(make_policy(dynamic))]
    if directory is not None:
        own.append(hpf.callbacks.BackupAndRestore(directory, save_freq=2))
    if not overrides_first:
        own.reverse()
    model.fit(Batches(), epochs=EPOCHS, verbose=0, callbacks=[*own, *callbacks])
    return model


def wait_at(moment, count):
    """Makes the process stop at the count-th time of a moment."""
    seen = 0

    def before(function):
        def stopping(*arguments, **keywords):
            nonlocal seen
            seen += 1
            if seen == count:
                print("waiting", flush=True)
                time.sleep(600)
            return function(*arguments, **keywords)

        return stopping

    def after(function):
        return lambda *arguments: before(lambda result: result)(function(*arguments))

    Store, Path = backup_store.BackupStore, backup_store.Path
    if moment == "step":
        stop = before(lambda batch, logs: None)
        return [keras.callbacks.LambdaCallback(on_train_batch_end=stop)]
    if moment == "array":  # half of the arrays are in the file
        backup_store.np.lib.format.write_array = before(np.lib.format.write_array)
    elif moment == "fsync":
        backup_store.os.fsync = before(os.fsync)
    elif moment == "rename":
        Path.rename = before(Path.rename)
    elif moment == "renamed":
        Path.rename = after(Path.rename)
    elif moment == "remove":
        Store._remove = before(Store._remove)
    return []


if __name__ == "__main__":
    path, moment, count, *options = sys.argv[1:]
    train(
        path,
        wait_at(moment, int(count)),
        overrides_first="reversed" not in options,
        dynamic="dynamic" in options,
    )
