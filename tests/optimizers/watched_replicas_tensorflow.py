"""Run by test_watched_reference.py in a process of its own, which has two logical CPU devices.

Without `jit_compile`: plain Keras's `fit` fails with it there, since XLA for the first device is
not let at the variables of the second one.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from test_watched_reference import STEPS, gradients, made


def values_on(strategy, replica, variables):
    """Float64 values of variables on a replica."""
    own = [strategy.experimental_local_results(v.value)[replica] for v in variables]
    return [tf.cast(value, "float64").numpy() for value in own]


def per_replica(strategy, tensors):
    """Values per replica of what each replica has as a list of tensors."""
    return [
        strategy.experimental_distribute_values_from_function(
            lambda context, pair=pair: pair[context.replica_id_in_sync_group]
        )
        for pair in zip(*tensors, strict=True)
    ]


def compare(strategy, kind):
    with strategy.scope():
        weights, optimizer, watch, reference = made(kind)
        optimizer.build(weights)
        targets = [optimizer.target(weight) for weight in weights]

    @tf.function(autograph=False)
    def step(given):
        strategy.run(lambda own: optimizer.apply(own, weights), args=(given,))

    random = np.random.default_rng()
    bad_step, bad_replica = random.integers(STEPS), random.integers(2)
    for number in range(STEPS):
        drawn = [
            [
                tf.cast(value, keras.backend.standardize_dtype(weights[0].dtype))
                for value in gradients(random, number == bad_step and replica == bad_replica)
            ]
            for replica in range(2)
        ]
        scale = values_on(strategy, 1, [optimizer.dynamic_scale])[0]
        before = values_on(strategy, 1, targets)
        step(per_replica(strategy, drawn))
        sums = [tf.cast(one + other, "float64").numpy() for one, other in zip(*drawn, strict=True)]
        reference.step(sums, scale, before, values_on(strategy, 1, targets))
    assert list(reference.nonfinite) == [2, 0, 0, 1], reference.nonfinite
    reference.assert_told_by(watch.last_window())


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    compare(strategy, sys.argv[1])


if __name__ == "__main__":
    main()
