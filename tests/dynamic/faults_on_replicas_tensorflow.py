"""Run by test_planted_faults.py in a process of its own, which has two logical CPU devices."""

import json

import keras
import numpy as np
import tensorflow as tf
from test_planted_faults import Fragile, config, events_of, fit, host

from deepseek_hpf.callbacks import DynamicPrecision

GLOBAL_BATCH = 16  # 8 a replica


def data():
    random = np.random.default_rng()
    x = random.uniform(0.05, 0.1, size=(12 * GLOBAL_BATCH, 3)).astype("float32")
    y = 3.0 * x[:, :1]
    x[3 * GLOBAL_BATCH + 2] *= 100.0  # replica 0 alone
    x[6 * GLOBAL_BATCH + 11] *= 100.0  # replica 1 alone
    x[9 * GLOBAL_BATCH + 13] = np.nan
    return x, y


def run(strategy, controller):
    keras.utils.set_random_seed(5)
    with strategy.scope():
        layers = [keras.layers.Dense(8, activation="relu"), Fragile(name="fragile")]
        model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    callback = DynamicPrecision(config(controller=controller))
    history = fit(model, *data(), callback, batch_size=GLOBAL_BATCH)
    return model, events_of(history)


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    _, static = run(strategy, "static")
    model, events = run(strategy, "threshold")
    skipped = [e for e in static if e["kind"] == "overflow"]
    pairs = [strategy.experimental_local_results(v.value) for v in model.trainable_variables]
    report = {
        "static": [[e["step"], e["cause"], e.get("layer")] for e in skipped],
        "samples": list(skipped[-1]["samples"]),
        "promoted": [[e["step"], e["block"]] for e in events if e["kind"] == "promote"],
        "scale": host(model.optimizer.dynamic_scale),
        "alike": all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in pairs),
    }
    print("REPORT" + json.dumps(report))


if __name__ == "__main__":
    main()
