"""Run by test_replicas.py in a process of its own, which has two logical CPU devices."""

import contextlib
import dataclasses
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.adam_8bit import Adam8bit
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(48, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
BAD = X.copy()
BAD[28] = np.inf  # in the second batch of 16, the second half: replica 1 alone sees it
CASES = {
    "plain": (lambda: LossScaleOptimizer(keras.optimizers.Adam(0.01)), "float32"),
    "averaged": (
        lambda: LossScaleOptimizer(
            keras.optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=2),
            clipping=clipping.GlobalNorm(0.1),
        ),
        "float32",
    ),
    "accumulated": (
        lambda: LossScaleOptimizer(
            keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
            clipping=clipping.Adaptive(0.01),
        ),
        "float32",
    ),
    "masters": (
        lambda: LossScaleOptimizer(
            keras.optimizers.SGD(0.01), clipping=clipping.Anomaly(), master_weights=True
        ),
        "bfloat16",
    ),
    "split": (
        lambda: LossScaleOptimizer(
            keras.optimizers.AdamW(0.01, weight_decay=0.1), master_weights="split"
        ),
        "bfloat16",
    ),
    "stochastic": (
        lambda: LossScaleOptimizer(
            Adam8bit(0.01, min_8bit_size=1, block_size=8), master_weights="stochastic"
        ),
        "bfloat16",
    ),
}
# What rounds otherwise updates otherwise.
UNWATCHED = ("averaged", "stochastic")


def run(case, strategy):
    make, dtype = CASES[case]
    keras.utils.set_random_seed(1)
    with strategy.scope() if strategy else contextlib.nullcontext():
        layers = [keras.Input((4,)), keras.layers.Dense(3, dtype=dtype), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        model.compile(make(), "mse", jit_compile=False)
        if case not in UNWATCHED:
            model.optimizer.watch_gradients(3, 1)
        model.fit(BAD, Y, batch_size=16, verbose=0, shuffle=False)
    optimizer = model.optimizer
    window = optimizer.watch.last_window() if optimizer.watch.variables else None
    same = True
    if strategy:
        for variable in (*optimizer.variables, *model.trainable_variables):
            first, second = strategy.experimental_local_results(variable.value)
            same &= first.numpy().tobytes() == second.numpy().tobytes()
    names = ("skipped_steps", "clipped_steps", "gradient_norm", "dynamic_scale", "step_counter")
    own = vars(optimizer.inner_optimizer)
    return {
        "weights": np.concatenate([w.astype("float32").ravel() for w in model.get_weights()]),
        "counters": [float(getattr(optimizer, name).numpy()) for name in names],
        "iterations": int(optimizer.inner_optimizer._iterations.numpy()),
        "same": same,
        "window": window
        and [window.steps, window.skipped, *map(dataclasses.astuple, window.variables)],
        "left_behind": [n for n in own if type(own[n]).__name__ == "_Replacement"],
    }


def eager_skips(strategy):
    """A loop of one's own, eager: replica 1 alone overflows."""
    with strategy.scope():
        variable = keras.Variable([1.0])
        optimizer = LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=4.0)
        optimizer.build([variable])

    def step(bad):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        gradient = tf.where(tf.logical_and(bad, tf.equal(replica, 1)), np.inf, 1.0)
        optimizer.apply([tf.reshape(gradient, [1])], [variable])

    strategy.run(step, args=(tf.constant(True),))
    after_skip = float(variable.numpy()[0])
    strategy.run(step, args=(tf.constant(False),))
    return [after_skip, float(variable.numpy()[0]), int(optimizer.skipped_steps.numpy())]


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    case = sys.argv[1]
    alone, together = run(case, None), run(case, strategy)
    report = {
        "eager": eager_skips(strategy),
        "difference": float(np.abs(alone.pop("weights") - together["weights"]).max()),
        "finite": bool(np.isfinite(together.pop("weights")).all()),
        "alone": alone,
        "together": together,
    }
    print("REPORT" + json.dumps(report))


if __name__ == "__main__":
    main()
