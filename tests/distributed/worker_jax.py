"""One process of a test with Keras on JAX: runs the cases it is given, and writes them down."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.experimental import multihost_utils

ROWS = 8  # of a joined batch
CALLBACKS = ("PrecisionOverrides", "DynamicPrecision")


def connect(rank, size, meeting_place):
    """Forms the cluster; process 0 finds a free port and writes it down for the others."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    place = Path(meeting_place)
    if rank == 0:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place.with_suffix(".part").write_text(str(port))
        place.with_suffix(".part").rename(place)
    while not place.exists():
        time.sleep(0.05)
    address = f"127.0.0.1:{place.read_text()}"
    jax.distributed.initialize(
        address, size, rank, initialization_timeout=120, heartbeat_timeout_seconds=10
    )


def rows(case, rank, size):
    """The rows of one process, step by step; all numbers are within [-1, 1]."""
    rng = np.random.default_rng(case["seed"])
    for step in range(case["steps"]):
        joined = rng.uniform(-1, 1, (ROWS, 9)).astype("float32")
        fault = {(s, r): kind for s, r, kind in case.get("faults", ())}
        for r in range(size):
            kind = fault.get((step, r))
            own = slice(r, None, size)
            if kind in ("nan", "inf"):
                joined[own, :6] = float(kind)
            if kind == "overflow":  # of the scaled gradients, in float16
                joined[own, 6:] = 1e6
            if kind == "activation":  # of float16: 65504
                joined[own, :6] = 1e6
        own = joined[rank::size]
        yield own[:, :6], own[:, 6:]


def create_model(case):
    import keras

    keras.utils.set_random_seed(case["seed"])
    layers = [
        keras.layers.Dense(10, activation="tanh", name="stem"),
        keras.layers.Dense(8, name="body"),
        keras.layers.Dense(3, name="head"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def callbacks_of(case, rank):
    from deepseek_hpf import PrecisionConfig, callbacks

    given = case.get("configs", [case.get("config", {})] * 2)[rank]
    config = PrecisionConfig.from_dict({"policy": "mixed_float16", **given})
    return getattr(callbacks, case.get("callback", CALLBACKS[0]))(config)


def distribute(case):
    """Sets the distribution of the models that are made next."""
    import keras

    kind, devices = case.get("distribution", "data"), keras.distribution.list_devices()
    if kind == "none":
        return keras.distribution.set_distribution(None)
    if kind == "data":
        parallel = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        return keras.distribution.set_distribution(parallel)
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout["stem.*kernel"] = (None, "model")
    layout["body.*kernel"] = ("model", None)
    parallel = keras.distribution.ModelParallel(layout_map=layout, auto_shard_dataset=False)
    return keras.distribution.set_distribution(parallel)


def numbers_of(model):
    whole = [multihost_utils.process_allgather(w.value, tiled=True) for w in model.weights]
    return [float(n) for w in whole for n in np.asarray(w).flatten()]


def train(case, rank, size):
    """Each step is a `fit` of its own, so that the weights can be seen in between."""
    distribute(case)
    model = create_model(case)
    callback = callbacks_of(case, rank)
    record = {"weights": [numbers_of(model)], "history": []}
    per_fit = case.get("per_fit", 1)
    whole = case.get("distribution") == "model"  # each process has all rows of a batch
    batches = list(rows(case, *((0, 1) if whole else (rank, size))))
    fit = {"batch_size": len(batches[0][0]), "shuffle": False, "verbose": 0}
    for begin in range(0, len(batches), per_fit):
        some = batches[begin : begin + per_fit]
        x, y = (np.concatenate(part) for part in zip(*some, strict=True))
        history = model.fit(x, y, **fit, callbacks=[callback])
        record["history"].append({k: v[0] for k, v in history.history.items()})
        record["weights"].append(numbers_of(model))
    record["policies"] = {layer.name: layer.dtype_policy.name for layer in model.layers}
    return record


def raised(case, rank, size):
    """Returns the kind and the words of what a training raised."""
    from deepseek_hpf.errors import ConfigError, PrecisionError

    try:
        train(case, rank, size)
    except (ConfigError, PrecisionError) as error:
        return [type(error).__name__, str(error)]
    return None


def backed_up(case, rank, size):
    """Two epochs with a backup after each; one process may die in the second one."""
    import keras

    from deepseek_hpf.callbacks import BackupAndRestore

    class Dying(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if [self.epoch, batch, rank] == case.get("dies"):
                os.kill(os.getpid(), signal.SIGKILL)

    distribute(case)
    model = create_model(case)
    x, y = (np.concatenate(part) for part in zip(*rows(case, rank, size), strict=True))
    backup = BackupAndRestore(str(Path(case["folder"]) / f"rank{rank}"), delete_checkpoint=False)
    fit = {"batch_size": ROWS // size, "shuffle": False, "verbose": 0, "epochs": 2}
    model.fit(x, y, **fit, callbacks=[callbacks_of(case, rank), backup, Dying()])
    return {"weights": numbers_of(model), "skipped": int(model.optimizer.skipped_steps.value)}


KINDS = {f.__name__: f for f in (train, raised, backed_up)}


def main(rank, size, given, result, meeting_place):
    connect(rank, size, meeting_place)
    results = [KINDS[case["kind"]](case, rank, size) for case in given["cases"]]
    Path(result).write_text(json.dumps(results))
    jax.distributed.shutdown()


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[3]).read_text())
    main(int(sys.argv[1]), int(sys.argv[2]), given, *sys.argv[4:])
