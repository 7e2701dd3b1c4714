"""What is kept of a step, and that nothing else changes: results, traces, others' wrappers."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.compiled_plans import CompiledPlans
from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.checkpoint.replay import Replay, remove_replay
from deepseek_hpf.dynamic.kept_batches import KeptBatches
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.plan import LayerPlan, PrecisionPlan

BACKEND = keras.backend.backend()
SIZES = [4, 4, 4, 4, 4, 2]


class Counting(keras.layers.Layer):
    """Counts how often it is called with training on: under a compiler, once a trace or so."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.calls = 0

    def call(self, x, training=False):
        self.calls += bool(training)
        return x


class Keeping(keras.callbacks.Callback):
    """Keeps what each step was given; `before` is called before a step."""

    def __init__(self, kept, before=lambda batch: None):
        super().__init__()
        self.kept, self.before, self.steps = kept, before, []

    def on_train_batch_begin(self, batch, logs=None):
        self.before(batch)
        self.steps.append(self.kept.taken())
        self.kept.install()

    def on_train_end(self, logs=None):
        self.steps = [*self.steps[1:], self.kept.taken()]


def made(guarded=False, **options):
    keras.utils.set_random_seed(1)
    counting = Counting(name="counting")
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(4),
        counting,
        keras.layers.Dropout(0.3),
        *([keras.layers.BatchNormalization()] if guarded else []),
        keras.layers.Dense(1, name="head"),
    ]
    model = keras.Sequential(layers)
    model.compile(LossScaleOptimizer("adam") if guarded else "sgd", "mse", **options)
    if guarded:
        install_guard(model)
    counting.calls = 0
    return model, counting


def rows(count=None):
    x = np.random.default_rng().normal(size=(count or sum(SIZES), 3)).astype("float32")
    return x, x[:, :1]


def fit(model, x, y, *callbacks, epochs=2):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, "epochs": epochs}
    return model.fit(x, y, callbacks=list(callbacks), **options).history


def values(batch):
    return [np.asarray(keras.ops.convert_to_numpy(leaf)) for leaf in keras.tree.flatten(batch)]


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return b"".join(np.asarray(v.numpy()).tobytes() for v in variables)


PER_EXECUTION = [1] if BACKEND == "torch" else [1, 4]
GUARDED = [False, pytest.param(True, marks=pytest.mark.slow)]


@pytest.mark.parametrize("steps", PER_EXECUTION)
@pytest.mark.parametrize("guarded", GUARDED)
def test_results_and_traces_are_as_without_and_all_batches_are_kept(steps, guarded):
    x, y = rows()
    options = {"guarded": guarded, "steps_per_execution": steps}
    options["jit_compile"] = BACKEND == "jax" or (guarded and BACKEND == "tensorflow")
    plain, plain_count = made(**options)
    history = fit(plain, x, y)
    model, count = made(**options)
    keeping = Keeping(KeptBatches(model))
    assert fit(model, x, y, keeping) == history
    assert state_of(model) == state_of(plain)
    assert count.calls == plain_count.calls
    taken = [batch for step in keeping.steps for batch in step]
    assert [len(step) for step in keeping.steps] == ([4, 2] if steps == 4 else [1] * 6) * 2
    starts = np.cumsum([0, *SIZES[:-1]]).tolist() * 2
    for (kept_x, kept_y), start, size in zip(taken, starts, SIZES * 2, strict=True):
        np.testing.assert_array_equal(values(kept_x)[0], x[start : start + size])
        np.testing.assert_array_equal(values(kept_y)[0], y[start : start + size])


def test_plan_switches_trace_each_plan_as_often_as_without():
    wide = PrecisionPlan({name: LayerPlan(policy="float32") for name in ("counting", "head")})
    low = wide.replace({"head": LayerPlan(policy="mixed_bfloat16")})
    order = {1: low, 2: wide, 4: low, 5: wide}
    x, y = rows()
    results = []
    for keeps in (False, True):
        model, count = made()
        plans = CompiledPlans(model, wide)
        switching = Keeping(
            KeptBatches(model),
            lambda batch, plans=plans: plans.switch(order.get(batch, plans.plan)),
        )
        if not keeps:
            switching.kept.install = lambda: None
        fit(model, x, y, switching)
        results.append((state_of(model), count.calls))
        if keeps:
            assert [len(step) for step in switching.steps] == [1] * 12
    assert results[0] == results[1]


@pytest.mark.parametrize("replay_first", [False, True])
def test_within_a_replay_only_what_is_trained_on_is_kept(replay_first):
    model = made()[0]
    replay, kept = Replay(model, 2), KeptBatches(model)
    first = [replay.expect, lambda batch: kept.install()]

    def before(batch):
        for each in first if replay_first else reversed(first):
            each(batch)

    keeping = Keeping(kept, before)
    x, y = rows()
    fit(model, x, y, keeping, epochs=1)
    assert [len(step) for step in keeping.steps] == [0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(values(keeping.steps[2])[0], x[8:12])
    remove_replay(model)
    kept.remove()
    assert not hasattr(model.train_function, "function")


def test_nested_data_and_a_data_set_that_never_ends():
    inputs = {name: keras.Input((3,), name=name) for name in ("a", "b")}
    outputs = keras.layers.Dense(1)(keras.layers.Add()(list(inputs.values())))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    random = np.random.default_rng()
    x = {name: random.normal(size=(8, 3)).astype("float32") for name in inputs}
    y, weights = np.ones((8, 1), "float32"), random.uniform(size=8).astype("float32")

    def batches():
        while True:
            yield x, y, weights

    kept = KeptBatches(model)
    model.fit(batches(), steps_per_epoch=2, epochs=2, verbose=0, callbacks=[Keeping(kept)])
    ((kept_x, kept_y, kept_weights),) = kept.taken()
    for name, value in x.items():
        np.testing.assert_array_equal(values(kept_x[name])[0], value)
    np.testing.assert_array_equal(values(kept_y)[0], y)
    np.testing.assert_array_equal(values(kept_weights)[0], weights)


def test_installing_again_and_removing():
    model = made()[0]
    kept = KeptBatches(model)
    kept.install()  # nothing is compiled yet
    assert model.train_function is None
    model.make_train_function()
    function = model.train_function
    kept.install()
    wrapped = model.train_function
    kept.install()
    assert model.train_function is wrapped
    assert wrapped is not function
    assert kept.taken() == []
    x, y = rows(4)
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(values(kept.taken())[0], x)
    kept.remove()
    assert model.train_function is function
    assert kept.taken() == []
    wrapped_data = [(x, y)] if BACKEND == "torch" else iter([(x, y)])
    if BACKEND != "jax":
        wrapped(wrapped_data)  # whoever kept the wrapper runs the function and keeps nothing
        assert kept.taken() == []


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_replicas():
    script = Path(__file__).with_name("kept_replicas_tensorflow.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
