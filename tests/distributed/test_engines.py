"""What Keras cannot train on several processes is refused, and the way out is named."""

import subprocess
import sys

import keras
import pytest

from deepseek_hpf import PrecisionError
from deepseek_hpf.callbacks import DynamicPrecision, PrecisionOverrides

FIT = """
import os
os.environ["KERAS_BACKEND"] = "tensorflow"
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before TensorFlow has done anything
import keras, numpy as np
from deepseek_hpf import PrecisionError
from deepseek_hpf.callbacks import {callback}
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
try:
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[{callback}("float32")])
except PrecisionError as error:
    print("REFUSED", error)
"""


def create_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_several_workers_of_tensorflow_are_refused_by_name():
    code = FIT.format(callback="DynamicPrecision")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert "REFUSED" in done.stdout, done.stderr
    said = done.stdout.partition("REFUSED ")[2]
    assert "MultiWorkerMirroredStrategy, with which `fit` of Keras 3 does not work" in said
    assert "KERAS_BACKEND=jax" in said
    assert "examples/distributed/keras_jax.py" in said


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("callback", [PrecisionOverrides, DynamicPrecision])
def test_the_strategy_of_the_model_is_what_counts(callback, monkeypatch):
    import tensorflow as tf

    several = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    model = create_model()
    callback("float32").set_model(model)
    monkeypatch.setattr(type(model), "distribute_strategy", several)
    with pytest.raises(PrecisionError, match="several machines set KERAS_BACKEND=jax"):
        callback("float32").set_model(model)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("callback", [PrecisionOverrides, DynamicPrecision])
def test_fit_of_keras_on_pytorch_in_a_group_is_refused(callback, monkeypatch):
    import torch.distributed as dist

    model = create_model()
    callback("float32").set_model(model)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        callback("float32").set_model(model)  # a group of one is no several processes
        monkeypatch.setattr(dist, "get_world_size", lambda: 3)
        with pytest.raises(PrecisionError, match=r"in 3 processes.*coordinate"):
            callback("float32").set_model(model)
    finally:
        monkeypatch.undo()
        dist.destroy_process_group()


@pytest.mark.backend("jax")
@pytest.mark.parametrize("callback", [PrecisionOverrides, DynamicPrecision])
def test_processes_of_jax_without_a_distribution_are_refused(callback, monkeypatch):
    import jax

    model = create_model()
    callback("float32").set_model(model)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(PrecisionError, match=r"over the 3 processes.*set_distribution"):
        callback("float32").set_model(model)
