"""A skipped step leaves nothing behind, on every back end, in every way to run a step."""

import copy
import json
import math
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.adapters.guard import install_guard, skip_causes
from deepseek_hpf.adapters.step_logs import PRECISION_LOGS
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

BACKEND = keras.backend.backend()
BATCH = 4


class Counter(keras.layers.Layer):
    """Keeps the sum of all it has seen: NaN for ever after one NaN."""

    def build(self, input_shape):
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False, name="total")

    def call(self, inputs):
        self.total.assign(self.total + ops.cast(ops.sum(inputs), "float32"))
        return inputs


def value(variable):
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def optimizer_of(name="adam", **kwargs):
    return LossScaleOptimizer(keras.optimizers.get(name), **kwargs)


def create_model(built=True, optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(7)
    layers = [
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.3),
        Counter(name="counter"),
        # A stateful RNN does not train on PyTorch, and on JAX `fit` does not keep its states.
        keras.layers.GRU(3, stateful=BACKEND == "tensorflow", dropout=0.2, name="gru"),
        keras.layers.Dense(2, name="head"),
    ]
    first = [keras.Input((5, 3), batch_size=BATCH)] if built else []
    model = keras.Sequential([*first, *layers])
    model.compile(
        optimizer or optimizer_of(),
        "mse",
        metrics=["mae", "cosine_similarity"],
        **compile_arguments,
    )
    return model


@pytest.fixture
def data(request):
    rng = np.random.default_rng()
    x = rng.normal(size=(5 * BATCH, 5, 3)).astype("float32")
    return x, rng.normal(size=(5 * BATCH, 2)).astype("float32")


def insert(x, y, position, batch):
    at = position * BATCH
    return np.concatenate([x[:at], batch, x[at:]]), np.concatenate([y[:at], y[:BATCH], y[at:]])


def bad_batch(x):
    batch = x[:BATCH].copy()
    batch[1, 2, 0] = np.nan
    return batch


def fit(model, x, y, **kwargs):
    kwargs = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **kwargs}
    keras.utils.set_random_seed(13)  # on PyTorch, Dropout draws from the generator of the process
    return model.fit(x, y, **kwargs).history


def everything(model):
    """All that must agree with a run that never saw the bad batch; scale and counters excluded."""
    variables = [*model.variables, *model.optimizer.inner_optimizer.variables]
    return {f"{i} {v.path}": value(v) for i, v in enumerate(variables)}


def assert_same_bits(one, other):
    assert one
    assert len(one) == len(other)
    for (name, a), b in zip(one.items(), other.values(), strict=True):
        assert np.array_equal(a, b), f"{name}: {a} != {b}"


def without_scale(history):
    """Loss and metrics of a history. The scale is a power of two, so gradients keep their bits."""
    return {k: v for k, v in history.items() if k not in PRECISION_LOGS}


TF, JAX = pytest.mark.backend("tensorflow"), pytest.mark.backend("jax")
NOT_TORCH = pytest.mark.backend("tensorflow", "jax")
SLOW = pytest.mark.slow
MODES = [
    pytest.param({}, id="compiled"),
    pytest.param({"steps_per_execution": 2}, id="two-steps", marks=[NOT_TORCH, SLOW]),
    pytest.param({"jit_compile": True}, id="xla", marks=[TF, SLOW]),
    pytest.param({"run_eagerly": True}, id="eager", marks=[NOT_TORCH, SLOW]),
]
SMALL_MODES = [
    pytest.param({"steps_per_execution": 2}, id="two-steps", marks=NOT_TORCH),
    pytest.param({"run_eagerly": True}, id="eager", marks=TF),
    pytest.param({"jit_compile": False}, id="not-jitted", marks=[JAX, pytest.mark.slow]),
    pytest.param({"jit_compile": True}, id="xla", marks=TF),
]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_with_bad_batches_equals_the_run_without_them(data, mode):
    x, y = data
    clean, model = create_model(**mode), create_model(**mode)
    for one in (clean, model):
        install_guard(one)
    expected = fit(clean, x, y, epochs=2)
    for position in (5, 2, 0):  # in the end the first, one in the middle, and the last
        x, y = insert(x, y, position, bad_batch(x))
    history = fit(model, x, y, epochs=2)
    assert history["skipped_steps"] == [3.0, 6.0]
    assert_same_bits(everything(model), everything(clean))
    assert without_scale(history) == without_scale(expected)


@pytest.mark.parametrize("mode", SMALL_MODES)
def test_steps_of_every_kind_are_guarded(mode):
    x, y = small_data()
    clean, model = small_model(**mode), small_model(**mode)
    for one in (clean, model):
        install_guard(one)
    fit(clean, x, y)
    fit(model, *insert(x, y, 1, x[:BATCH] * np.nan))
    assert int(value(model.optimizer.skipped_steps)) == 1
    assert_same_bits(everything(model), everything(clean))


def test_without_the_guard_the_state_is_lost(data):
    x, y = data
    model = create_model()
    fit(model, *insert(x, y, 2, bad_batch(x)))
    assert np.isnan(value(model.get_layer("norm").moving_mean)).any()
    assert np.isnan(value(model.get_layer("counter").total))


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_a_model_that_the_first_step_builds_is_guarded_in_that_step(data):
    x, y = data
    clean, model = create_model(built=False), create_model(built=False)
    for one in (clean, model):
        install_guard(one)
    fit(clean, x, y)
    fit(model, *insert(x, y, 0, bad_batch(x)))
    assert_same_bits(everything(model), everything(clean))


def test_a_short_last_batch_may_be_the_bad_one():
    rng = np.random.default_rng()
    x, y = rng.normal(size=(10, 3)).astype("float32"), rng.normal(size=(10, 1)).astype("float32")
    x[9, 1] = np.inf
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    model.compile(optimizer_of("sgd"), "mse")
    install_guard(model)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
    )
    history = fit(model, x, y, callbacks=[record])
    assert history["skipped_steps"] == [1.0]
    assert history["loss"] == [losses[1]] == [losses[2]]
    assert np.isfinite(value(model.layers[0].moving_variance)).all()


def test_logged_loss_is_the_mean_over_the_applied_batches():
    rng = np.random.default_rng()
    x = rng.normal(size=(6 * BATCH, 3)).astype("float32")
    y = rng.normal(size=(6 * BATCH, 1)).astype("float32")
    for bad in (1, 5):
        x[bad * BATCH] = np.nan
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer_of(keras.optimizers.SGD(0.0)), "mse", metrics=["mae"])
    install_guard(model)
    history = fit(model, x, y)
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    error = (x.astype("float64") @ kernel + bias - y).reshape(6, BATCH)
    applied = error[[0, 2, 3, 4]]
    assert history["loss"][0] == pytest.approx(np.mean(applied**2), rel=1e-5)
    assert history["mae"][0] == pytest.approx(np.mean(np.abs(applied)), rel=1e-5)


def small_model(optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(11)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1, name="head")]
    )
    model.compile(optimizer or optimizer_of("sgd"), "mse", metrics=["mae"], **compile_arguments)
    return model


def small_data(batches=3):
    rng = np.random.default_rng()
    x = rng.normal(size=(batches * BATCH, 3)).astype("float32")
    return x, rng.normal(size=(batches * BATCH, 1)).astype("float32")


def test_an_epoch_of_skips_logs_nan_and_is_never_the_best(tmp_path):
    x, y = small_data()
    model = small_model()
    install_guard(model)
    file = tmp_path / "best.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(
        file, monitor="loss", save_best_only=True, save_weights_only=True
    )
    saved = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: saved.append((file.exists(), checkpoint.best, logs))
    )
    before = everything(model)
    callbacks = [checkpoint, look]
    history = fit(model, x * np.nan, y, validation_data=(x, y), callbacks=callbacks)
    assert_same_bits(everything(model), before)
    assert math.isnan(history["loss"][0])
    assert math.isnan(history["mae"][0])
    assert history["skipped_steps"] == [3.0]
    assert history["val_loss"][0] == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-6)
    exists, best, logs = saved[0]
    assert not exists
    assert not math.isnan(best)
    assert math.isnan(logs["loss"])
    loss = fit(model, x, y, callbacks=callbacks)["loss"][0]
    assert file.exists()
    assert checkpoint.best == pytest.approx(loss)
    fit(model, x * np.nan, y, callbacks=callbacks)
    assert checkpoint.best == pytest.approx(loss)


def test_logs_hold_the_figures_and_evaluation_does_not():
    x, y = small_data()
    model = small_model()
    names = sorted(small_model().train_on_batch(x, y, return_dict=True))
    plain = small_model().train_on_batch(x, y)
    install_guard(model)
    assert np.allclose(model.train_on_batch(x, y), plain)
    assert sorted(model.train_on_batch(x, y, return_dict=True)) == sorted([*names, *PRECISION_LOGS])
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(logs)
    )
    history = fit(model, x, y, validation_data=(x, y), callbacks=[record])
    assert set(seen[0]) == {*names, *PRECISION_LOGS}
    assert set(history) == {*names, *PRECISION_LOGS, *(f"val_{name}" for name in names)}
    assert history["dynamic_scale"] == [32768.0]
    assert history["gradient_norm"][0] == pytest.approx(float(value(model.optimizer.gradient_norm)))
    assert sorted(model.evaluate(x, y, verbose=0, return_dict=True)) == names


def test_an_overflow_of_float16_gradients_is_no_bad_data_and_shows_its_own_finite_loss():
    x, y = small_data(1)
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, dtype="mixed_float16"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1, dtype="mixed_float16"),
            keras.layers.Activation("linear", dtype="float32"),
        ]
    )
    model.compile(optimizer_of(keras.optimizers.SGD(1e-5), initial_scale=2.0**24), "mse")
    install_guard(model)
    before = everything(model)
    stop = keras.callbacks.TerminateOnNaN()
    history = fit(model, x, y * 100, callbacks=[stop])
    assert history["skipped_steps"] == [1.0]
    assert not model.stop_training  # the loss itself was finite
    assert_same_bits(everything(model), before)
    assert [float(value(v)) for v in skip_causes(model).variables] == [0.0, 0.0, 0.0]
    x, y = np.tile(x, (30, 1)), np.tile(y, (30, 1))
    history = fit(model, x, y * 100)
    assert math.isfinite(history["loss"][0])
    assert history["dynamic_scale"][0] < 2.0**24
    assert not np.array_equal(value(model.layers[0].kernel), next(iter(before.values())))


def test_causes_are_told_apart():
    x, y = small_data(1)
    model = small_model()
    model.compile(optimizer_of("sgd"), lambda y, pred: ops.mean(ops.sqrt(y) * pred, axis=-1))
    install_guard(model)
    y = np.abs(y)

    def causes():
        return [int(value(v)) for v in skip_causes(model).variables]

    weights = np.ones(BATCH, "float32")
    model.train_on_batch(x, y, weights)
    assert causes() == [0, 0, 0]
    model.train_on_batch(np.where(np.arange(BATCH)[:, None] == 1, np.inf, x), y, weights)
    assert causes() == [1, 0, 0]
    model.train_on_batch(x, y * np.nan, weights)
    assert causes() == [2, 0, 0]
    model.train_on_batch(x, y, weights * np.nan)
    assert causes() == [3, 0, 0]
    model.train_on_batch(x, -y, weights)
    assert causes() == [3, 1, 0]


def test_a_train_step_of_a_subclass_is_wrapped():
    class Own(keras.Sequential):
        def train_step(self, *arguments):
            result = super().train_step(*arguments)
            logs = result[0] if BACKEND == "jax" else result
            logs = {**logs, "twice": logs["loss"] * 2}
            return (logs, result[1]) if BACKEND == "jax" else logs

    x, y = small_data()
    model = Own([keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    model.compile(optimizer_of("sgd"), "mse")
    install_guard(model)
    x[-BATCH:] = np.nan
    history = fit(model, x, y)
    assert np.isfinite(history["loss"][0])
    assert set(history) == {"loss", "twice", *PRECISION_LOGS}
    assert np.isfinite(value(model.layers[0].moving_mean)).all()


def test_with_another_optimizer_the_guard_does_nothing():
    x, y = small_data()
    model = small_model("sgd")
    uninstall = install_guard(model)
    assert set(fit(model, x, y)) == {"loss", "mae"}
    assert len(model.train_on_batch(x, y)) == 2
    model.compile(optimizer_of("sgd"), "mse")
    assert set(fit(model, x, y)) >= {"loss", *PRECISION_LOGS}
    uninstall()
    assert set(fit(model, x, y)).isdisjoint(PRECISION_LOGS)


def test_uninstall_takes_everything_back():
    x, y = small_data(1)
    model = small_model()
    before = dict(vars(model))
    metrics = list(model.metrics)
    uninstall = install_guard(model)
    assert install_guard(model) is not uninstall
    model.train_on_batch(x, y)
    uninstall()
    uninstall()
    added = set(vars(model)) - set(before)
    assert not {name for name in added if not name.startswith(("_jax_state", "_symbolic"))}
    assert [id(m) for m in metrics] == [id(m) for m in model.metrics][: len(metrics)]
    assert skip_causes(model) is None
    own = model.train_step
    model.__dict__["train_step"] = own
    install_guard(model)()
    assert model.__dict__["train_step"] is own


def test_a_saved_model_knows_nothing_of_the_guard(tmp_path):
    x, y = small_data(1)
    plain, guarded = small_model(), small_model()
    install_guard(guarded)
    for name, model in (("plain", plain), ("guarded", guarded)):
        model.train_on_batch(x, y)
        model.save(tmp_path / f"{name}.keras")

    def content(name):
        with zipfile.ZipFile(tmp_path / f"{name}.keras") as archive:
            return sorted(archive.namelist()), archive.read("config.json").decode()

    (files, config), (guarded_files, guarded_config) = content("plain"), content("guarded")
    assert files == guarded_files
    assert "skip_causes" not in guarded_config
    assert "guard" not in guarded_config.replace(guarded.name, "")
    assert json.loads(config)["compile_config"].keys() == (
        json.loads(guarded_config)["compile_config"].keys()
    )
    copies = [
        keras.saving.load_model(tmp_path / "guarded.keras"),
        copy.deepcopy(guarded),
        pickle.loads(pickle.dumps(guarded)),
        keras.models.clone_model(guarded),
    ]
    for one in copies:
        assert skip_causes(one) is None
        assert "train_step" not in vars(one)


def test_only_what_may_be_written_is_read_before_a_step(monkeypatch):
    if BACKEND == "jax":
        pytest.skip("on JAX a step is a function of the state: nothing is read or copied for it")
    x, y = small_data(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(64, trainable=False),
            keras.layers.BatchNormalization(trainable=False),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer_of("sgd"), "mse")
    install_guard(model)
    backend = __import__(f"deepseek_hpf.adapters.guard_{BACKEND}", fromlist=["read"])
    taken = []
    read = backend.read
    monkeypatch.setattr(
        backend, "read", lambda variables: taken.append(len(variables)) or read(variables)
    )
    model.train_on_batch(x, y)
    assert taken[:2] == [2, 2]  # one layer's statistics, and the loss tracker


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_nan_on_any_replica_leaves_nothing_behind_on_all():
    script = Path(__file__).with_name("guard_replicas_tensorflow.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout.strip().endswith("as before the step"), done.stderr[-3000:]


@pytest.mark.backend("torch")
def test_buffers_of_pytorch_modules_are_state_too():
    import torch

    x, y = small_data()
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.TorchModuleWrapper(torch.nn.BatchNorm1d(3)),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer_of("sgd"), "mse")
    install_guard(model)
    buffers = list(model.layers[0].module.buffers())
    fit(model, x, y)
    before = [buffer.clone() for buffer in buffers]
    assert int(before[2]) == 3  # batches tracked
    fit(model, x * np.nan, y)
    assert all(torch.equal(a, b) for a, b in zip(before, buffers, strict=True))
