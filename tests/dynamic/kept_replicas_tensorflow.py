"""Kept batches under `MirroredStrategy`: same weights, same traces, values per replica.

A script: the two devices have to be set up before TensorFlow starts.
"""

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.dynamic.kept_batches import KeptBatches

TRACES = []


class Counting(keras.layers.Layer):
    def call(self, x, training=False):
        if training:
            TRACES.append(x.shape)
        return x


def train(strategy, x, y, keeps):
    TRACES.clear()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        layers = [keras.Input((4,)), Counting(), keras.layers.Dropout(0.3), keras.layers.Dense(2)]
        model = keras.Sequential(layers)
        model.compile("adam", "mse")
    kept, rows = KeptBatches(model), []

    def before(batch, logs=None):
        rows.extend(rows_of(batch) for batch in kept.taken())
        if keeps:
            kept.install()

    callback = keras.callbacks.LambdaCallback(on_train_batch_begin=before)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
    rows.extend(rows_of(batch) for batch in kept.taken())
    weights = b"".join(w.tobytes() for w in model.get_weights())
    return weights, len(TRACES), rows


def rows_of(batch):
    return [int(value.shape[0]) for value in batch[0].values]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = np.random.default_rng().normal(size=(21, 4)).astype("float32")
    plain = train(strategy, x, x[:, :2], False)
    kept = train(strategy, x, x[:, :2], True)
    assert plain[0] == kept[0]
    assert plain[1] == kept[1], (plain[1], kept[1])
    assert kept[2] == [[4, 4], [4, 4], [3, 2]] * 2, kept[2]


if __name__ == "__main__":
    main()
