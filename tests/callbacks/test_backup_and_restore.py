"""Runs that are interrupted and resumed in one process; `tests/integration` kills real
processes."""

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters import training_state
from deepseek_hpf.callbacks import BackupAndRestore

EPOCHS, STEPS, BATCH = 3, 4, 8
BACKEND = keras.backend.backend()


class Interruption(Exception):
    pass


class InterruptAt(keras.callbacks.Callback):
    """Raises when so many steps of the run have been completed."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.where = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            raise Interruption


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rows = slice(index * BATCH, (index + 1) * BATCH)
        # An augmentation that draws from a global generator.
        return self.x[rows] * np.random.uniform(0.5, 1.5), self.y[rows]


def make_data(kind):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(STEPS * BATCH - 3, 6)).astype("float32")  # the last batch is a partial one
    y = rng.integers(0, 3, size=len(x))
    if kind == "arrays":
        return {"x": x, "y": y, "batch_size": BATCH}
    if kind == "pydataset":
        return {"x": Batches(x, y)}
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    return {"x": dataset.shuffle(64, seed=3, reshuffle_each_iteration=False).batch(BATCH)}


def make_model(built=True, optimizer=None, **compile_arguments):
    layers = [
        keras.layers.Dense(5),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(3, activation="softmax"),
    ]
    model = keras.Sequential(([keras.Input((6,))] if built else []) + layers)
    inner = keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9))
    model.compile(
        optimizer or keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=4),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        **compile_arguments,
    )
    return model


def run(kind, callbacks, seed=5, **model_arguments):
    keras.utils.set_random_seed(seed)
    model = make_model(**model_arguments)
    model.fit(**make_data(kind), epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model


def bits(model):
    values = [training_state.read_value(e.variable) for e in everything(model)]
    return [(v.shape, v.dtype.name, v.tobytes()) for v in values]


def everything(model):
    return training_state.training_variables(model, metrics=False)


def resume(tmp_path, kind, where, save_freq, **model_arguments):
    directory = tmp_path / "run"
    callbacks = [BackupAndRestore(directory, save_freq), InterruptAt(*where)]
    with pytest.raises(Interruption):
        run(kind, callbacks, **model_arguments)
    seen = Recorder()
    resumed = run(kind, [BackupAndRestore(directory, save_freq), seen], **model_arguments)
    assert not directory.exists()
    return resumed, seen


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append((self.epoch, batch, sorted(logs)))


@pytest.fixture(scope="module")
def references():
    made = {}

    def reference(kind, **model_arguments):
        key = (kind, repr(model_arguments))
        if key not in made:
            made[key] = run(kind, [], **model_arguments)
        return made[key]

    return reference


CASES = [
    ("arrays", (1, 2), 1),
    ("arrays", (1, 3), "epoch"),
    ("pydataset", (2, 0), 3),
    ("pydataset", (0, 2), 2),
]
if BACKEND == "tensorflow":
    CASES += [("tf.data", (1, 2), 1), ("tf.data", (2, 1), "epoch")]


@pytest.mark.parametrize(("kind", "where", "save_freq"), CASES)
def test_resumed_run_ends_with_the_same_bits(tmp_path, references, kind, where, save_freq):
    full = references(kind)
    resumed, seen = resume(tmp_path, kind, where, save_freq)
    assert bits(resumed) == bits(full)
    assert resumed.history.history == full.history.history
    assert resumed.history.epoch == list(range(EPOCHS))
    # Step numbers are those of whole epochs, and logs are never empty.
    first = seen.batches[0][0]
    expected = [(e, b) for e in range(first, EPOCHS) for b in range(STEPS)]
    assert [(e, b) for e, b, _ in seen.batches] == expected
    assert all(names == ["accuracy", "loss"] for _, _, names in seen.batches)
