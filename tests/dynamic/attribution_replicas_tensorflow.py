"""A fault on each replica in turn under `MirroredStrategy`: found there, and nothing changes.

A script: the two devices have to be set up before TensorFlow starts.
"""

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.dynamic.attribution import attribute
from deepseek_hpf.dynamic.kept_batches import KeptBatches
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer


def copies(model):
    """Every replica's copy of every variable, as bytes."""
    variables = [*model.variables, *model.optimizer.variables]
    return [np.array(copy).tobytes() for v in variables for copy in v.value.values]


def look(strategy, x, expected):
    with strategy.scope():
        layers = [
            keras.Input((4,)),
            keras.layers.Rescaling(1e3, name="times", dtype="mixed_float16"),
            keras.layers.BatchNormalization(name="norm", dtype="float32"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(2, name="head", dtype="float32"),
        ]
        model = keras.Sequential(layers)
        model.compile(LossScaleOptimizer("sgd", initial_scale=1024.0), "mse")
    install_guard(model)
    kept, found = KeptBatches(model), []

    def before(batch, logs=None):
        if batch == 1:
            state = copies(model)
            found.append(attribute(model, kept.taken()[0], step=0, scale=1024.0))
            assert copies(model) == state
        kept.install()

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=before)
    model.fit(x, x[:, :2], batch_size=8, shuffle=False, verbose=0, callbacks=[callback])
    (overflow,) = found
    assert (overflow.cause, overflow.layer, overflow.phase, overflow.samples) == expected, overflow


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = np.random.default_rng().normal(size=(21, 4)).astype("float32")
    look(strategy, x, ("unknown", None, None, ()))
    for row in (1, 6):
        bad = x.copy()
        bad[row, 2] = np.nan
        look(strategy, bad, ("data", None, None, (row,)))
        wild = x.copy()
        wild[row] = 1e4
        look(strategy, wild, ("activation", "times", "forward", ()))


if __name__ == "__main__":
    main()
