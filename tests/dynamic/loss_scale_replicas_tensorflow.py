"""Run by test_loss_scale.py in a process of its own, which has two logical CPU devices."""

import json

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.dynamic.loss_scale import set_loss_scale
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer


class SetScale(keras.callbacks.Callback):
    """Sets the scale before the second step."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            set_loss_scale(self.model, 64.0)


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(LossScaleOptimizer("sgd"), "mse")
    x = np.ones((32, 4), "float32")
    model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[SetScale()])
    scales = strategy.experimental_local_results(model.optimizer.dynamic_scale.value)
    report = {
        "scales": [float(scale.numpy()) for scale in scales],
        "skipped": int(model.optimizer.skipped_steps.numpy()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
