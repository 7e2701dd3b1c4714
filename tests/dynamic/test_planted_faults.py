"""Faults planted in a training: each is named, what can be remedied is, and the run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import deepseek_hpf as hpf
from deepseek_hpf.callbacks import DynamicPrecision

pytestmark = pytest.mark.slow_with("jax")

slow = pytest.mark.slow
BATCH = 4


class Fragile(keras.layers.Layer):
    """Nearly the identity of what is positive; on the way it squares, and leaves float16's range
    from 0.9 on."""

    def call(self, x):
        return ops.sqrt(ops.square(x * 300.0) + 1.0) / 300.0


class Faint(keras.layers.Layer):
    """The identity, which lets hardly any gradient back."""

    def call(self, x):
        return x * 1e-6 + ops.stop_gradient(x * (1.0 - 1e-6))


def config(policy="mixed_float16", loss_scale=None, **dynamic):
    values = {"every": 5, "sample_every": 1, "max_blocks": 3, **dynamic}
    if dynamic.get("controller", "threshold") == "threshold":
        values.setdefault("underflow", 1.0)  # what was learned has small gradients
    scale = {"initial_scale": 128.0, **(loss_scale or {})}
    return hpf.PrecisionConfig.from_dict({"policy": policy, "loss_scale": scale, "dynamic": values})


def create_model(middle, optimizer="sgd", policy=None, learning_rate=0.1):
    keras.utils.set_random_seed(5)
    layers = [
        keras.layers.Dense(8, name="first", activation="relu", dtype=policy),
        middle,
        keras.layers.Dense(8, name="second", activation="tanh", dtype=policy),
        keras.layers.Dense(1, name="head", dtype="float32"),
    ]
    model = keras.Sequential([keras.Input((3,)), *layers])
    optimizer = keras.optimizers.get(optimizer)
    optimizer.learning_rate = learning_rate
    model.compile(optimizer, "mse")
    return model


def data(steps=30, fault=None):
    """Batches that stay well within float16, from a step on batches that do not."""
    random = np.random.default_rng()
    x = random.uniform(0.05, 0.1, size=(steps * BATCH, 3)).astype("float32")
    y = 3.0 * x[:, :1]
    if fault is not None:
        x[fault * BATCH :] *= 100.0
    return x, y


def fit(model, x, y, *callbacks, **options):
    options = {"batch_size": BATCH, "verbose": 0, "shuffle": False, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def events_of(history):
    return [event for events in history.history["precision_events"] for event in events]


def of_kind(events, kind):
    return [event for event in events if event["kind"] == kind]


def is_finite(model):
    return all(np.isfinite(w).all() for w in model.get_weights())


def host(variable):
    return float(ops.convert_to_numpy(variable.value))


@pytest.mark.parametrize("accumulated", [None, pytest.param(3, marks=slow)])
def test_an_activation_that_overflows_from_a_step_on(accumulated):
    """The layer is named and promoted within two skipped steps, and the scale is kept."""
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulated)
    model = create_model(Fragile(name="fragile"), optimizer)
    events = events_of(fit(model, *data(fault=13), DynamicPrecision(config())))
    first, *more = of_kind(events, "overflow")
    assert (first["step"], first["cause"], first["layer"]) == (13, "activation", "fragile")
    assert first["phase"] == "forward"
    assert len(more) <= 1
    promotion = of_kind(events, "promote")[0]
    assert (promotion["step"], promotion["block"]) == (14, "fragile")
    assert host(model.optimizer.skipped_steps) == 1 + len(more)
    assert host(model.optimizer.dynamic_scale) == 128.0
    assert model.get_layer("fragile").compute_dtype == "float32"
    assert model.get_layer("second").compute_dtype == "float16"
    assert is_finite(model)


class Weights(keras.callbacks.Callback):
    """Keeps a weight as it was before each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0].copy())


@slow
def test_keras_does_not_recover_from_what_this_does():
    x, y = data(steps=40, fault=10)
    changed = {}
    for name in ("keras", "dynamic"):
        weights = Weights()
        if name == "keras":
            fragile = Fragile(name="fragile", dtype="mixed_float16")
            model = create_model(fragile, policy="mixed_float16")
            inner = keras.optimizers.SGD(0.1)
            model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=128.0), "mse")
            fit(model, x, y, weights)
            assert host(model.optimizer.dynamic_scale) == 128.0 * 0.5**30
        else:
            model = create_model(Fragile(name="fragile"))
            fit(model, x, y, DynamicPrecision(config()), weights)
        changed[name] = [not np.array_equal(w, weights.seen[-1]) for w in weights.seen[12:-1]]
    assert not any(changed["keras"])
    assert all(changed["dynamic"])


def test_a_nan_in_an_image_is_bad_data():
    x, y = data()
    x[7 * BATCH + 2, 1] = np.nan
    model = create_model(Fragile(name="fragile"))
    events = events_of(fit(model, x, y, DynamicPrecision(config())))
    fault, scale = events
    assert (fault["kind"], fault["step"], fault["cause"]) == ("overflow", 7, "data")
    assert list(fault["samples"]) == [2]
    assert "layer" not in fault
    assert (scale["kind"], scale["scale"]) == ("scale", 128.0)
    assert host(model.optimizer.skipped_steps) == 1
    assert host(model.optimizer.dynamic_scale) == 128.0
    assert is_finite(model)


def test_a_sum_of_gradients_that_leaves_the_range_of_its_weights():
    """Finite gradients of 40,000, of which a sum in float16 holds one; the scale is kept."""
    inputs = keras.Input((3,))
    summed = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="zeros", dtype="float16", name="summed"
    )
    outputs = keras.layers.Activation("linear", dtype="float32")(summed(inputs))
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.SGD(1e-6, gradient_accumulation_steps=3)
    model.compile(optimizer, lambda y, y_pred: ops.mean(y_pred))
    x = np.full((9 * BATCH, 3), 10.0, "float32")
    x[4 * BATCH : 6 * BATCH] = 40_000.0
    settings = config("float16", loss_scale={"initial_scale": 1.0, "min_scale": 0.25})
    history = fit(model, x, x[:, :1], DynamicPrecision(settings))
    overflow, scale = events_of(history)
    assert (overflow["kind"], overflow["step"], overflow["cause"]) == (
        "overflow",
        5,
        "accumulation",
    )
    assert overflow["layer"] == "summed"
    assert (scale["kind"], scale["scale"]) == ("scale", 1.0)
    assert host(model.optimizer.skipped_steps) == 1
    assert is_finite(model)


@slow
def test_gradients_that_underflow_in_one_block():
    model = create_model(Faint(name="faint", dtype="float32"), learning_rate=1e-3)
    x, y = data()
    settings = config(loss_scale={"initial_scale": 1.0, "max_scale": 1.0}, underflow=0.5)
    (promotion,) = events_of(fit(model, x, 1000.0 * y, DynamicPrecision(settings)))
    assert (promotion["kind"], promotion["block"]) == ("promote", "first")
    assert "of its gradient underflows" in promotion["reason"]
    assert model.get_layer("first").compute_dtype == "float32"
    assert model.get_layer("second").compute_dtype == "float16"


@slow
def test_skips_that_are_seen_at_a_read_out_are_looked_into_from_then_on():
    """In bfloat16 the flag is read at each step only once there was a skip."""
    x, y = data()
    x[[9 * BATCH + 1, 12 * BATCH, 27 * BATCH]] = np.inf
    model = create_model(Fragile(name="fragile"))
    events = events_of(fit(model, x, y, DynamicPrecision(config("mixed_bfloat16"))))
    # That of step 9 is the last one before a read-out, that of step 12 comes in the window behind
    # it; that of step 27 is in the middle of a window.
    assert [(e["step"], e["cause"]) for e in events] == [(9, "data"), (12, "data")]
    assert host(model.optimizer.skipped_steps) == 3


@slow
def test_five_hundred_overflowing_steps_in_a_row():
    x, y = data(steps=520, fault=10)
    x[510 * BATCH :] /= 100.0
    model = create_model(Fragile(name="fragile"))
    weights = Weights()
    callback = DynamicPrecision(config(controller="static", every=50))
    events = events_of(fit(model, x, y, callback, weights))
    assert host(model.optimizer.skipped_steps) == 500
    assert host(model.optimizer.dynamic_scale) == 1.0
    assert {e["layer"] for e in of_kind(events, "overflow")} == {"fragile"}
    assert 10 <= len(events) <= 20  # not each of them is run again
    assert np.array_equal(weights.seen[510], weights.seen[10])
    assert not np.array_equal(weights.seen[-1], weights.seen[510])
    assert is_finite(model)


@slow
def test_a_spike_of_the_learning_rate():
    model = create_model(Fragile(name="fragile"), learning_rate=0.02)

    class Spike(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch in (120, 123):
                self.model.optimizer.learning_rate = 20.0 if batch == 120 else 0.02

    history = fit(model, *data(steps=160), DynamicPrecision(config()), Spike())
    promotions = of_kind(events_of(history), "promote")
    assert promotions
    assert all(event["step"] > 120 for event in promotions)
    assert is_finite(model)


@slow
@pytest.mark.backend("tensorflow")
def test_an_overflow_on_each_replica_in_turn():
    script = Path(__file__).with_name("faults_on_replicas_tensorflow.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.rpartition("REPORT")[2])
    assert report["static"] == [
        [3, "activation", "fragile"],
        [6, "activation", "fragile"],
        [9, "data", None],
    ]
    assert report["samples"] == [13]
    assert report["promoted"] == [[4, "fragile"]]
    assert report["scale"] == 128.0
    assert report["alike"]
