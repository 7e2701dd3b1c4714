"""Warnings that name the cause, once each, and figures that can be read in the middle of `fit`."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.adapters.training_watch import TrainingWatch
from deepseek_hpf.callbacks.precision_overrides import PrecisionOverrides
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer


class Watching(keras.callbacks.Callback):
    def __init__(self, model, interval=0.0):
        super().__init__()
        self.watch = TrainingWatch(model, interval)
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.watch.on_batch_begin()
        optimizer = self.model.optimizer
        figures = (optimizer.skipped_steps, optimizer.dynamic_scale)
        self.seen.append(tuple(float(ops.convert_to_numpy(v.value)) for v in figures))

    def on_epoch_end(self, epoch, logs=None):
        self.watch.on_epoch_end()


def undefined_gradient(y, pred):
    """Is finite, and its derivative is inf at 0 times 0."""
    return ops.mean(ops.sqrt(pred - pred) + 0.0 * y, axis=-1)


def create_model(loss="mse", **kwargs):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(LossScaleOptimizer("sgd", **kwargs), loss)
    model.optimizer.build(model.trainable_variables)  # on TensorFlow the first step would do it
    install_guard(model)
    return model


def warnings_of(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "training step" in str(w.message)]


def data(steps=4):
    rng = np.random.default_rng()
    return rng.normal(size=(steps, 3)).astype("float32"), rng.normal(size=(steps, 1)) ** 2


def fit(model, x, y, *callbacks, **kwargs):
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=list(callbacks), **kwargs)


def test_figures_are_readable_at_each_batch():
    x, y = data()
    x[1] = x[3] = np.nan
    model = create_model()
    watching = Watching(model, interval=1e9)
    fit(model, x, y, watching)
    scale = 2.0**15
    assert watching.seen == [(0, scale), (0, scale), (1, scale / 2), (1, scale / 2)]
    assert int(ops.convert_to_numpy(model.optimizer.skipped_steps.value)) == 2


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_bad_inputs_are_named_once(interval):
    x, y = data()
    x[2, 0] = np.inf
    model = create_model()
    watching = Watching(model, interval)
    (text,) = warnings_of(lambda: fit(model, x, y, watching, epochs=2))
    assert "bad data, not overflow" in text
    assert "inputs, targets or sample weights" in text


def test_a_loss_that_is_not_finite_is_named_once():
    x, y = data()
    model = create_model(lambda y, pred: ops.mean(ops.sqrt(y) * pred, axis=-1))
    y[1:3] *= -1
    watching = Watching(model)
    (text,) = warnings_of(lambda: fit(model, x, y, watching, epochs=2))
    assert "loss or metrics were NaN or inf although the batch was finite" in text


@pytest.mark.parametrize("scale", [4.0, None])
def test_ten_skips_in_a_row_on_the_floor_are_named_once(scale):
    x, y = data(9)
    model = create_model(undefined_gradient, initial_scale=scale)
    watching = Watching(model)
    assert warnings_of(lambda: fit(model, x, y, watching)) == []
    (text,) = warnings_of(lambda: fit(model, x, y, watching, epochs=2))
    expected = "no loss scale that could be lowered" if scale is None else "scale on its floor"
    assert expected in text


def test_an_overflow_that_backing_off_remedies_is_no_warning():
    x, y = data()
    model = create_model(lambda y, pred: ops.mean(pred * 1e35, axis=-1), initial_scale=2.0**24)
    watching = Watching(model)
    assert warnings_of(lambda: fit(model, x, y, watching)) == []
    assert int(ops.convert_to_numpy(model.optimizer.skipped_steps.value)) > 0


def test_the_callback_watches():
    x, y = data()
    x[0] = np.nan
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    (text,) = warnings_of(lambda: fit(model, x, y, PrecisionOverrides("float32"), epochs=2))
    assert "bad data" in text
