"""Runs that are interrupted and resumed in one process; `tests/integration` kills real
processes."""

import warnings

import keras
import numpy as np
import pytest

from deepseek_hpf.callbacks import BackupAndRestore
from deepseek_hpf.checkpoint import training_state
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

EPOCHS, STEPS, BATCH = 3, 4, 8
pytestmark = pytest.mark.slow_with("jax")

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


def make_model(built=True, optimizer=None, heavy=False, **compile_arguments):
    """Light by default: on JAX and TensorFlow most of a run's time is compilation."""
    layers = [keras.layers.Dense(5), keras.layers.Dropout(0.4)]
    if heavy:
        layers.insert(1, keras.layers.BatchNormalization())
    model = keras.Sequential(
        ([keras.Input((6,))] if built else [])
        + layers
        + [keras.layers.Dense(3, activation="softmax")]
    )
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9)
    if optimizer is None and heavy:
        inner = keras.optimizers.Adam(schedule)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=4)
    model.compile(
        optimizer or keras.optimizers.SGD(schedule, momentum=0.9),
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
    ("pydataset", (2, 0), 3),
    pytest.param("arrays", (1, 3), "epoch", marks=pytest.mark.slow),
    pytest.param("pydataset", (0, 2), 2, marks=pytest.mark.slow),
]
if BACKEND == "tensorflow":
    CASES += [
        ("tf.data", (1, 2), 1),
        pytest.param("tf.data", (2, 1), "epoch", marks=pytest.mark.slow),
    ]


@pytest.mark.parametrize(("kind", "where", "save_freq"), CASES)
def test_resumed_run_ends_with_the_same_bits(tmp_path, references, kind, where, save_freq):
    full = references(kind, heavy=True)
    resumed, seen = resume(tmp_path, kind, where, save_freq, heavy=True)
    assert bits(resumed) == bits(full)
    assert resumed.history.history == full.history.history
    assert resumed.history.epoch == list(range(EPOCHS))
    # Step numbers are those of whole epochs, and logs are never empty.
    first = seen.batches[0][0]
    expected = [(e, b) for e in range(first, EPOCHS) for b in range(STEPS)]
    assert [(e, b) for e, b, _ in seen.batches] == expected
    assert all(names == ["accuracy", "loss"] for _, _, names in seen.batches)


def interrupted(tmp_path, where=(1, 2), save_freq=2, **arguments):
    """A directory with the backup of a run that was interrupted."""
    directory = tmp_path / "run"
    callbacks = [BackupAndRestore(directory, save_freq, **arguments), InterruptAt(*where)]
    with pytest.raises(Interruption):
        run("arrays", callbacks)
    return directory


@pytest.mark.parametrize("where", [(0, 2), pytest.param((1, 0), marks=pytest.mark.slow)])
def test_unbuilt_model_is_restored_just_before_its_first_step(tmp_path, where):
    full = run("arrays", [], built=False)
    resumed, _ = resume(tmp_path, "arrays", where, 1 if where[0] == 0 else "epoch", built=False)
    assert bits(resumed) == bits(full)
    assert resumed.history.history == full.history.history


@pytest.mark.slow
@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_per_execution(tmp_path, references):
    arguments = {"steps_per_execution": 2}
    resumed, _ = resume(tmp_path, "arrays", (1, 3), 2, **arguments)
    assert bits(resumed) == bits(references("arrays", **arguments))
    directory = interrupted(tmp_path, where=(0, 1), save_freq=1)
    with pytest.raises(ConfigError, match="no multiple of `steps_per_execution`"):
        run("arrays", [BackupAndRestore(directory)], **arguments)


@pytest.mark.slow
def test_optimizer_swapped_behind_the_callback(tmp_path):
    class Swap(keras.callbacks.Callback):
        """Gives the model a new optimizer when others were already told that training begins."""

        def on_train_begin(self, logs=None):
            optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.01, 0.9), 2.0**20)
            optimizer.build(self.model.trainable_variables)
            self.model.optimizer = optimizer
            self.model.make_train_function(force=True)

    full = run("arrays", [Swap()])
    backup = BackupAndRestore(tmp_path, 1)
    with pytest.raises(Interruption):
        run("arrays", [backup, Swap(), InterruptAt(1, 2)])
    resumed = run("arrays", [BackupAndRestore(tmp_path, 1), Swap()])
    assert bits(resumed) == bits(full)


@pytest.mark.slow
def test_accumulation_average_weights_and_masters(tmp_path, global_dtype_policy):
    keras.config.set_dtype_policy("bfloat16")

    def train(callbacks):
        inner = keras.optimizers.AdamW(0.01, use_ema=True, gradient_accumulation_steps=3)
        clipping = {"kind": "global_norm", "max_norm": 1.0}
        optimizer = LossScaleOptimizer(inner, 8.0, 2, clipping=clipping, master_weights=True)
        return run("arrays", callbacks, optimizer=optimizer)

    full = train([])
    with pytest.raises(Interruption):
        train([BackupAndRestore(tmp_path, 1), InterruptAt(1, 1)])
    resumed = train([BackupAndRestore(tmp_path, 1, delete_checkpoint=False)])
    assert bits(resumed) == bits(full)
    assert {dtype for _, dtype, _ in bits(full)} >= {"bfloat16", "float32"}
    assert len(list(tmp_path.iterdir())) == 1


def test_learning_rate_changed_by_a_callback_behind(tmp_path):
    class Halve(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate = float(self.model.optimizer.learning_rate) / 2
            logs["halved"] = epoch

    def train(*callbacks):
        return run("arrays", [*callbacks, Halve()], optimizer=keras.optimizers.SGD(0.1))

    full = train()
    with pytest.raises(Interruption):
        train(BackupAndRestore(tmp_path), InterruptAt(2, 1))
    resumed = train(BackupAndRestore(tmp_path))
    assert bits(resumed) == bits(full)
    assert resumed.history.history == full.history.history
    assert resumed.history.history["halved"] == [0, 1, 2]


class Counter:
    def __init__(self):
        self.total, self.values = 0, np.zeros(3, "float16")

    def get_state(self):
        return {"total": self.total, "values": self.values}

    def set_state(self, state):
        self.total, self.values = state["total"], state["values"]


def test_extras_travel_with_the_backup(tmp_path):
    first, second = Counter(), Counter()
    first.total, first.values = 7, np.array([1, np.inf, 6e-8], "float16")
    directory = interrupted(tmp_path, extras={"controller": first})
    with pytest.raises(ConfigError, match=r"Expected: \['controller'\]. Received: extras=\[\]"):
        run("arrays", [BackupAndRestore(directory)])
    run("arrays", [BackupAndRestore(directory, extras={"controller": second})])
    assert second.total == 7
    assert second.values.tobytes() == first.values.tobytes()
    assert second.values.dtype == "float16"
    with pytest.raises(ConfigError, match="`get_state` and `set_state`"):
        BackupAndRestore(directory, extras={"plan": object()})


@pytest.mark.parametrize("name", ["manifest.json", "state.npz"])
def test_damaged_backup_is_an_error_and_changes_nothing(tmp_path, name):
    directory = interrupted(tmp_path)
    (backup,) = directory.glob("backup-*")
    whole = (backup / name).read_bytes()
    middle = len(whole) // 2
    changes = {
        "truncated": whole[:middle],
        "empty": b"",
        "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "binary": b"\xff\xfe\x00" * 9,
    }
    keras.utils.set_random_seed(1)
    model = make_model()
    before = bits(model)
    for kind, content in changes.items():
        (backup / name).write_bytes(content)
        with pytest.raises(ConfigError, match="does not silently start anew") as caught:
            model.fit(**make_data("arrays"), verbose=0, callbacks=[BackupAndRestore(directory)])
        assert str(backup) in str(caught.value), kind
    (backup / name).unlink()
    with pytest.raises(ConfigError, match="does not silently start anew"):
        model.fit(**make_data("arrays"), verbose=0, callbacks=[BackupAndRestore(directory)])
    model.optimizer.build(model.trainable_variables)
    assert bits(model)[: len(model.variables)] == before[: len(model.variables)]


def test_double_checkpoint_falls_back_with_a_warning(tmp_path, references):
    directory = interrupted(tmp_path, save_freq=1, double_checkpoint=True)
    newer = max(directory.iterdir())
    (newer / "state.npz").write_bytes(b"")
    with pytest.warns(UserWarning, match="backup before the last"):
        resumed = run("arrays", [BackupAndRestore(directory, double_checkpoint=True)])
    assert bits(resumed) == bits(references("arrays"))


def test_backup_of_another_model_names_the_variable(tmp_path):
    directory = interrupted(tmp_path)
    wider = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    wider.compile("adam", "sparse_categorical_crossentropy")
    before = [training_state.read_value(v).tobytes() for v in wider.variables]
    with pytest.raises(ConfigError, match=r"kernel.*\(6, 5\) float32.*kernel.*\(6, 4\) float32"):
        wider.fit(**make_data("arrays"), verbose=0, callbacks=[BackupAndRestore(directory)])
    assert [training_state.read_value(v).tobytes() for v in wider.variables] == before


def test_other_optimizer_settings_are_said(tmp_path):
    directory = interrupted(tmp_path)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.9)
    other = keras.optimizers.SGD(schedule, momentum=0.5)
    with pytest.warns(UserWarning, match=r"momentum: 0.9 is now 0.5"):
        run("arrays", [BackupAndRestore(directory)], optimizer=other)


def test_epoch_shorter_than_the_backup(tmp_path):
    directory = interrupted(tmp_path, where=(0, 3), save_freq=3)
    keras.utils.set_random_seed(5)
    data = make_data("arrays")
    short = {"x": data["x"][:10], "y": data["y"][:10], "batch_size": BATCH}
    with pytest.raises(ConfigError, match="ran out before the step of the backup"):
        make_model().fit(**short, verbose=0, callbacks=[BackupAndRestore(directory)])


def test_a_later_fit_starts_at_its_own_epoch_and_trains_every_batch(tmp_path):
    directory = interrupted(tmp_path)
    resumed = run("arrays", [BackupAndRestore(directory)])
    seen = Recorder()
    resumed.fit(**make_data("arrays"), epochs=1, verbose=0, callbacks=[seen])
    assert [(e, b) for e, b, _ in seen.batches] == [(0, b) for b in range(STEPS)]
    assert int(resumed.optimizer.iterations) == (EPOCHS + 1) * STEPS


def test_nothing_left_to_train_still_restores(tmp_path):
    keras.utils.set_random_seed(5)
    done = run("arrays", [BackupAndRestore(tmp_path, delete_checkpoint=False)])
    again = run("arrays", [BackupAndRestore(tmp_path, delete_checkpoint=False)], seed=8)
    assert bits(again) == bits(done)
    assert again.history.history == done.history.history


@pytest.mark.parametrize("save_freq", [0, -1, True, 1.5, "batch", None])
def test_save_freq_is_checked(save_freq):
    with pytest.raises(ConfigError, match="Expected either 'epoch' or a positive integer"):
        BackupAndRestore("somewhere", save_freq)


def test_directories_that_cannot_be_used(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for directory, text in [("", "Empty"), (file, "a file"), ("gs://bucket/run", "mounted")]:
        with pytest.raises(ConfigError, match=text):
            BackupAndRestore(directory)
    (tmp_path / "latest.weights.h5").write_text("")
    with pytest.raises(ConfigError, match=r"keras\.callbacks\.BackupAndRestore"):
        run("arrays", [BackupAndRestore(tmp_path)])


def generator():
    data = make_data("arrays")
    while True:
        yield data["x"][:BATCH], data["y"][:BATCH]


class Reordered(Batches):
    def on_epoch_end(self):
        np.random.shuffle(self.x)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: {"x": generator(), "steps_per_epoch": 1}, "a Python generator cannot start"),
        (lambda: {**make_data("arrays"), "steps_per_epoch": 2}, "steps_per_epoch=2 over data of 4"),
        (lambda: {"x": Reordered(*(make_data("arrays")[k] for k in "xy"))}, "Reordered"),
        pytest.param(
            lambda: {"x": tf_dataset().shuffle(9, seed=1).batch(BATCH)},
            "reshuffle_each_iteration=True",
            marks=pytest.mark.backend("tensorflow"),
        ),
    ],
)
def test_order_that_cannot_be_reproduced_is_said_once(tmp_path, make, text):
    keras.utils.set_random_seed(5)
    model = make_model()
    with pytest.warns(UserWarning, match="same order") as caught:
        model.fit(**make(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    said = [
        str(w.message) for w in caught if "not see its data in the same order" in str(w.message)
    ]
    assert len(said) == 1
    assert text in said[0]


def tf_dataset():
    import tensorflow as tf

    data = make_data("arrays")
    return tf.data.Dataset.from_tensor_slices((data["x"], data["y"]))


def test_reproducible_order_is_not_warned_about(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*same order.*")
        run("arrays", [BackupAndRestore(tmp_path)])
        run("pydataset", [BackupAndRestore(tmp_path)])


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_mirrored_strategy(tmp_path):
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def train(callbacks):
        with strategy.scope():
            keras.utils.set_random_seed(5)
            model = make_model(optimizer=LossScaleOptimizer("sgd", 2.0**17))
        model.fit(**make_data("tf.data"), epochs=EPOCHS, verbose=0, callbacks=callbacks)
        return model

    full = train([])
    with pytest.raises(Interruption):
        train([BackupAndRestore(tmp_path, 1), InterruptAt(1, 2)])
    resumed = train([BackupAndRestore(tmp_path, 1)])
    assert bits(resumed) == bits(full)
    assert resumed.history.history == full.history.history
