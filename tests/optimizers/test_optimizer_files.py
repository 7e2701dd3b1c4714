"""The optimizer's state through Keras's files."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from steps import bits, number

from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def trained(optimizer, dtype="float32", epochs=1):
    layers = [keras.Input((3,)), keras.layers.Dense(2, dtype=dtype), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    if epochs:
        x = X.copy()
        x[0] = np.inf  # of four steps, one is skipped
        model.fit(x, Y, batch_size=4, epochs=epochs, verbose=0, shuffle=False)
    return model


def ours(**arguments):
    return LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=64.0, **arguments)


def rich():
    return ours(clipping=clipping.Anomaly(z=5.0), master_weights=True, min_scale=0.25)


LOAD = """
import sys, keras
from deepseek_hpf import LossScaleOptimizer
model = keras.models.load_model(sys.argv[1])
optimizer = model.optimizer
print(type(optimizer).__name__, optimizer.clipping, optimizer.scale_rules.min_scale)
print(float(optimizer.dynamic_scale), int(optimizer.skipped_steps))
"""


@pytest.mark.slow
def test_a_saved_model_comes_back_with_everything(tmp_path):
    model = trained(rich(), dtype="bfloat16")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is LossScaleOptimizer
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)
    assert number(loaded.optimizer.dynamic_scale) == 32.0
    for one in (model, loaded):
        one.fit(X, Y, batch_size=4, verbose=0, shuffle=False)
    assert bits(loaded.weights) == bits(model.weights)
    assert bits(loaded.optimizer.variables) == bits(model.optimizer.variables)
    # In a process of its own: Keras finds the class once it is imported.
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [
        "LossScaleOptimizer Anomaly(z=5.0, decay=0.99, warmup=100) 0.25",
        "32.0 1",
    ]


@pytest.mark.filterwarnings("ignore:Skipping variable loading")  # by the inner optimizer, as always
def test_weights_loaded_before_the_optimizer_is_built_keep_its_state(tmp_path):
    model = trained(rich(), dtype="bfloat16")
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = trained(rich(), dtype="bfloat16", epochs=0)
    fresh.load_weights(tmp_path / "model.weights.h5")
    for one in (model, fresh):
        one.fit(X, Y, batch_size=4, verbose=0, shuffle=False)
    assert number(fresh.optimizer.skipped_steps) == 1
    assert bits(fresh.weights) == bits(model.weights)
    assert bits(fresh.optimizer.variables) == bits(model.optimizer.variables)


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("built", [True, False])
def test_the_files_of_keras_wrapper_load(tmp_path, built):
    inner = keras.optimizers.Adam(0.01)
    model = trained(keras.optimizers.LossScaleOptimizer(inner, initial_scale=0.5))
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = trained(ours(), epochs=0)
    if built:
        fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    fresh.optimizer.build(fresh.trainable_variables)
    assert bits(fresh.optimizer.inner_optimizer.variables) == bits(inner.variables)
    assert number(fresh.optimizer.step_counter) == number(model.optimizer.step_counter)
    assert number(fresh.optimizer.dynamic_scale) == 1.0  # from 0.25, up to the floor


def test_the_state_of_another_model_is_refused_with_keras_warning():
    optimizer = ours()
    optimizer.build(trained("sgd", epochs=0).trainable_variables)
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        optimizer.load_own_variables({"0": np.zeros(())})
