"""Switching plans in `fit`: what is traced, in which dtype, how often."""

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.compiled_plans import CompiledPlans
from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.errors import PrecisionError
from deepseek_hpf.plan import LayerPlan, PrecisionPlan

BACKEND = keras.backend.backend()
EAGER = BACKEND == "torch"  # calls the model at every step
WIDE = PrecisionPlan({name: LayerPlan(policy="float32") for name in ("hidden", "spy", "head")})
LOW = WIDE.replace({name: LayerPlan(policy="mixed_bfloat16") for name in ("hidden", "spy")})


class Spy(keras.layers.Layer):
    """Notes the dtype of what it is given, at each trace."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def call(self, x, training=False):
        if not isinstance(x, keras.KerasTensor):
            dtype = keras.backend.standardize_dtype(x.dtype)
            self.seen.append(("train" if training else "infer", dtype))
        return x


def made(jit_compile="auto", guarded=True, **options):
    keras.utils.set_random_seed(1)
    spy = Spy(name="spy")
    hidden = keras.layers.Dense(4, name="hidden")
    model = keras.Sequential([keras.Input((3,)), hidden, spy, keras.layers.Dense(1, name="head")])
    model.compile("sgd", "mse", jit_compile=jit_compile, **options)
    if guarded:
        install_guard(model)
    spy.seen.clear()
    return model, spy


class Switching(keras.callbacks.Callback):
    """Goes through plans, one a batch."""

    def __init__(self, plans, order):
        super().__init__()
        self.plans, self.order = plans, order

    def on_train_batch_begin(self, batch, logs=None):
        if batch in self.order:
            self.plans.switch(self.order[batch])


def data(rows=32):
    random = np.random.default_rng()
    x = random.normal(size=(rows, 3)).astype("float32")
    return x, x[:, :1]


def fit(model, x, y, callbacks=(), **options):
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False, callbacks=list(callbacks), **options)


@pytest.mark.parametrize("guarded", [False, True])
def test_each_plan_is_traced_once_and_runs_in_its_own_dtype(guarded):
    model, spy = made(guarded=guarded)
    plans = CompiledPlans(model, WIDE)
    order = {1: LOW, 3: WIDE, 4: LOW, 6: WIDE}
    fit(model, *data(), [Switching(plans, order)])
    fit(model, *data(), [Switching(plans, {2: LOW, 5: WIDE})])
    trained = [dtype for kind, dtype in spy.seen if kind == "train"]
    w, b = "float32", "bfloat16"
    if EAGER:
        assert trained == [w, b, b, w, b, b, w, w, *[w] * 2, *[b] * 3, *[w] * 3]
    else:
        assert list(dict.fromkeys(trained)) == [w, b]
        per_trace = trained.count(w)  # a back end may call the model more than once a trace
        assert trained == [w] * per_trace + [b] * trained.count(b)
        assert trained.count(b) <= per_trace
    assert len(plans) == 2


def test_evaluation_and_prediction_follow():
    model, spy = made()
    plans = CompiledPlans(model, WIDE)
    x, y = data()

    def seen_in(run):
        spy.seen.clear()
        run(x)
        return {dtype for _, dtype in spy.seen}

    def evaluate(x):
        model.evaluate(x, y, verbose=0)

    def predict(x):
        model.predict(x, verbose=0)

    for run in (evaluate, predict):
        assert seen_in(run) == {"float32"}
    plans.switch(LOW)
    for run in (evaluate, predict):
        assert seen_in(run) == {"bfloat16"}
    plans.switch(WIDE)
    for run in (evaluate, predict):
        assert seen_in(run) == ({"float32"} if EAGER else set())


def test_without_a_switch_nothing_changes_and_with_one_training_goes_on():
    x, y = data()
    results = []
    for order in ({}, {2: WIDE}, {2: LOW, 4: WIDE}):
        model, _ = made()
        fit(model, x, y, [Switching(CompiledPlans(model, WIDE), order)])
        results.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    assert results[1].tobytes() == results[0].tobytes()
    assert results[2].tobytes() != results[0].tobytes()
    np.testing.assert_allclose(results[2], results[0], atol=0.02)


@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_an_execution_and_a_short_last_batch():
    model, spy = made(steps_per_execution=3)
    plans = CompiledPlans(model, WIDE)
    x, y = data(30)  # 8 batches, the last one of 2: executions of 3, 3 and 2
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[Switching(plans, {3: LOW})])
    assert {dtype for _, dtype in spy.seen} == {"float32", "bfloat16"}


def test_compiling_anew_forgets_and_closing_goes_back():
    model, spy = made(guarded=False)
    plans = CompiledPlans(model, WIDE)
    fit(model, *data(), [Switching(plans, {1: LOW})])
    model.compile("adam", "mae")
    plans.switch(WIDE)
    assert len(plans) == 2
    spy.seen.clear()
    fit(model, *data())
    assert {dtype for _, dtype in spy.seen} == {"float32"}
    plans.switch(LOW)
    plans.close()
    assert len(plans) == 1
    assert not {"train_step", "test_step"} & set(vars(model))
    assert model.get_layer("hidden").compute_dtype == "float32"
    fit(model, *data())


@pytest.mark.parametrize(
    "wrong",
    [
        {"unknown": LayerPlan(policy="float32")},
        {"hidden": LayerPlan()},
        {"hidden": LayerPlan(policy="mixed_bfloat16", backward="float32")},
    ],
)
def test_what_cannot_be_switched_to_is_refused(wrong):
    model, _ = made()
    plans = CompiledPlans(model, WIDE)
    function = model.train_function
    with pytest.raises(PrecisionError, match="Expected a plan"):
        plans.switch(WIDE.replace(wrong))
    assert plans.plan == WIDE
    assert model.train_function is function
    assert model.get_layer("hidden").compute_dtype == "float32"
