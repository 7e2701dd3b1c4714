"""The guard under `MirroredStrategy`: NaN on any replica, and all are as before the step.

A script: the two devices have to be set up before TensorFlow starts.
"""

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.adapters.guard import install_guard, skip_causes
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

BATCH = 8


def train(strategy, x, y, built=True):
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = keras.Sequential(
            [
                *([keras.Input((4,))] if built else []),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(2),
            ]
        )
        model.compile(LossScaleOptimizer("sgd"), "mse", metrics=["mae"])
    install_guard(model)
    history = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history
    return model, history


def copies(model):
    """Every replica's copy of every variable."""
    return [np.array(copy) for v in model.variables for copy in v.value.values]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rng = np.random.default_rng()
    x = rng.normal(size=(3 * BATCH, 4)).astype("float32")
    y = rng.normal(size=(3 * BATCH, 2)).astype("float32")
    clean, expected = train(strategy, x, y)
    bad_first, bad_second = x[:BATCH].copy(), x[:BATCH].copy()
    bad_first[0, 0] = bad_second[-1, 0] = np.nan
    with_bad = np.concatenate([bad_first, x[:BATCH], bad_second, x[BATCH:]])
    labels = np.concatenate([y[:BATCH]] * 3 + [y[BATCH:]])
    model, history = train(strategy, with_bad, labels, built=False)
    assert history["skipped_steps"] == [2.0]
    assert (history["loss"], history["mae"]) == (expected["loss"], expected["mae"])
    assert all(np.array_equal(a, b) for a, b in zip(copies(clean), copies(model), strict=True))
    causes = [float(v.numpy()) for v in skip_causes(model).variables]
    assert causes == [2.0, 0.0, 0.0]
    history = model.fit(x * np.nan, y, batch_size=BATCH, verbose=0).history
    assert np.isnan(history["loss"]).all()
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()


if __name__ == "__main__":
    main()
    print("as before the step")
