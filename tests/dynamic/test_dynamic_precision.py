"""`DynamicPrecision` in `fit`: what is traced, in which dtype, how often, and what is told."""

import importlib
import itertools
import json
import shutil

import keras
import numpy as np
import pytest
from scripted import BACKEND, EAGER, Fresh, Spy, bits, create_model, data, fit, scripted

import deepseek_hpf as hpf
from deepseek_hpf.callbacks import DynamicPrecision, PrecisionOverrides
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.scheduling.controllers.static import StaticController

LOW, HIGH = (0, 0), (2, 0)
slow = pytest.mark.slow


def config(policy="mixed_bfloat16", **dynamic):
    values = {"every": 4, "sample_every": 2, "max_blocks": 2, **dynamic}
    return hpf.PrecisionConfig.from_dict({"policy": policy, "dynamic": values})


def dynamic(moves=None, made=None, policy="mixed_bfloat16", **options):
    return DynamicPrecision(config(policy), scripted(moves or {}, made), **options)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        pytest.param("mixed_float16", {"optimizer": "accumulating"}, marks=slow),
        pytest.param("mixed_float16", {}, marks=slow),
        pytest.param("mixed_bfloat16", {}, marks=slow),
        pytest.param(
            "mixed_float16",
            {"steps_per_execution": 3},
            marks=[slow, pytest.mark.backend("tensorflow", "jax")],
        ),
        pytest.param(
            "mixed_bfloat16",
            {"jit_compile": True},
            marks=[
                slow,
                pytest.mark.backend("tensorflow", "torch"),  # JAX always does
                pytest.mark.timeout(1500),  # inductor compiles for minutes
            ],
        ),
    ],
)
def test_without_a_switch_it_trains_as_the_static_policy(policy, options):
    if BACKEND == "torch" and "jit_compile" in options and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler")
    x, y = data(30)  # the last batch is short
    results, histories = [], []
    for callback in (PrecisionOverrides(policy), dynamic(policy=policy)):
        if BACKEND == "torch" and "jit_compile" in options:
            # It counts recompilations per function, not per model, and gives up on the eighth.
            importlib.import_module("torch._dynamo").reset()
        own = dict(options)
        if own.get("optimizer") == "accumulating":
            own["optimizer"] = keras.optimizers.Adam(0.01, gradient_accumulation_steps=3)
        model = create_model(**own)
        assert model.jit_compile == own.get("jit_compile", BACKEND == "jax")
        history = fit(model, x, y, callback, epochs=2, validation_data=(x, y))
        results.append(bits(model))
        histories.append({k: v for k, v in history.history.items() if "precision_" not in k})
    assert results[0] == results[1]
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_array_equal(histories[1][name], values)


def test_each_plan_is_traced_once_over_switches_and_fits():
    spy = Spy(name="spy")
    model = create_model(spy)
    callback = dynamic({2: HIGH, 4: LOW, 5: HIGH, 10: LOW, 11: HIGH, 18: LOW})
    x, y = data()
    fit(model, x, y, callback, Fresh(spy))
    first = len(spy.seen)
    assert model.get_layer("hidden").compute_dtype == "float32"
    assert model.get_layer("mid").compute_dtype == "bfloat16"
    fit(model, x, y, callback)
    fit(model, x, y, callback)
    trained = [dtype for _, dtype in spy.seen]
    wide, low = "float32", "bfloat16"
    if EAGER:
        order = [low] * 2 + [wide] * 2 + [low] + [wide] * 5 + [low] + [wide] * 7 + [low] * 6
        assert trained == order
    else:
        assert len(spy.seen) == first
        assert trained == [low] * trained.count(low) + [wide] * trained.count(wide)
        assert trained.count(wide) <= trained.count(low) <= 3
    assert model.get_layer("hidden").compute_dtype == low


def test_evaluation_and_prediction_follow():
    spy = Spy(name="spy")
    model = create_model(spy)
    x, y = data()
    validation = {"validation_data": (x, y), "epochs": 2}
    fit(model, x, y, dynamic({8: HIGH}), Fresh(spy), **validation)
    inferred = [dtype for kind, dtype in spy.seen if kind == "infer"]
    assert list(dict.fromkeys(inferred)) == ["bfloat16", "float32"]
    for run in (lambda: model.evaluate(x, y, verbose=0), lambda: model.predict(x, verbose=0)):
        spy.seen.clear()
        run()
        assert {dtype for _, dtype in spy.seen} <= {"float32"}


@pytest.mark.slow
@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_an_execution():
    made, spy = [], Spy(name="spy")
    model = create_model(spy, steps_per_execution=3)
    x, y = data(30)  # 8 batches: executions of 3, 3 and 2
    history = fit(model, x, y, dynamic({3: HIGH, 11: LOW}, made), Fresh(spy), epochs=2)
    assert next(dtype for _, dtype in spy.seen) == "bfloat16"
    assert {dtype for _, dtype in spy.seen} == {"bfloat16", "float32"}
    assert history.history["precision_switches"] == [1, 2]
    windows = [(t.step, t.steps) for t in made[0].told if t.steps]
    assert windows == [(6, 4), (8, 4), (14, 4), (16, 4)]


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_a_model_that_its_first_step_builds():
    x, y = data()
    results = []
    for callback in (PrecisionOverrides("mixed_bfloat16"), dynamic()):
        model = create_model(built=False)
        fit(model, x, y, callback)
        results.append(bits(model))
    assert results[0] == results[1]
    spy, made = Spy(name="spy"), []
    model = create_model(spy, built=False)
    history = fit(model, x, y, dynamic({3: HIGH}, made))
    assert "float32" in {dtype for _, dtype in spy.seen}
    assert history.history["precision_switches"] == [1]
    assert [(t.step, t.steps) for t in made[0].told if t.steps] == [(4, 4), (8, 4)]


class Unbuilt(keras.Model):
    """A subclassed model that is built by being called, maybe on values only."""

    def __init__(self, spy, symbolic=True):
        super().__init__()
        self.hidden = keras.layers.Dense(6, name="hidden", activation="tanh")
        self.spy, self.symbolic = spy, symbolic
        self.mid = keras.layers.Dense(5, name="mid", activation="tanh")
        self.head = keras.layers.Dense(1, name="head")

    def call(self, x, training=False):
        if not self.symbolic:
            x.numpy()  # which only a tensor with a value has
        return self.head(self.mid(self.spy(self.hidden(x), training=training)))


FIRST_DTYPES = [(True, "float32"), pytest.param(False, "bfloat16", marks=slow)]


@pytest.mark.parametrize(("symbolic", "first"), FIRST_DTYPES)
def test_the_first_step_of_an_unbuilt_model_runs_under_the_rules_and_the_plan(
    symbolic, first, caplog
):
    """One that cannot be built before it runs under the policy's rules, and that is said."""
    if not symbolic and BACKEND != "tensorflow":
        pytest.skip("Keras builds all models before the first step, or refuses them")
    spy = Spy(name="spy")
    model = Unbuilt(spy, symbolic)
    model.compile("sgd", "mse", run_eagerly=not symbolic)
    rules = [{"layers": "*mid", "policy": "float32"}]
    phases = [{"step": 0, "policy": "float32"}, {"step": 3}]
    values = {"controller": "schedule", "schedule": phases, "every": 4, "sample_every": 2}
    settings = hpf.PrecisionConfig.from_dict(
        {"policy": "mixed_bfloat16", "rules": rules, "dynamic": values}
    )
    seen = []

    class Looking(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append((model.hidden.compute_dtype, model.mid.compute_dtype))

    x, y = data(24)
    fit(model, x, y, DynamicPrecision(settings), Looking())
    assert next(dtype for kind, dtype in spy.seen if kind == "train") == first
    assert [hidden for hidden, _ in seen[1:]] == ["float32"] * 2 + ["bfloat16"] * 3
    assert {mid for _, mid in seen[1:]} == {"float32"}
    assert ("begins with the second" in caplog.text) == (not symbolic)


@slow
def test_compiled_anew_between_two_fits():
    x, y = data()
    made = []
    callback = dynamic({2: HIGH, 12: LOW}, made)
    spy = Spy(name="spy")
    model = create_model(spy)
    fit(model, x, y, callback)
    skipped = callback.report.optimizer
    model.compile(keras.optimizers.Adam(0.01), "mae")
    history = fit(model, x, y, callback, Fresh(spy))
    assert callback.report.optimizer != skipped
    assert len(made) == 1
    trained = [dtype for kind, dtype in spy.seen if kind == "train"]
    assert list(dict.fromkeys(trained)) == ["float32", "bfloat16"]
    assert [t.step for t in made[0].told if t.steps] == [4, 8, 12, 16]
    assert history.history["precision_switches"] == [2]
    # The guard of the new compilation is at work, whichever plan is.
    x[5] = np.nan
    before = [w.copy() for w in model.get_weights()]
    history = fit(model, x[4:8], y[4:8], callback)
    assert history.history["skipped_steps"] == [1]
    after = model.get_weights()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


@slow
def test_loaded_weights_are_trained_on_in_the_plan_at_hand(tmp_path):
    x, y = data()
    model = create_model()
    callback = dynamic({2: HIGH})
    fit(model, x, y, callback)
    model.save_weights(tmp_path / "saved.weights.h5")
    saved = model.get_weights()
    fit(model, x, y, callback)
    model.load_weights(tmp_path / "saved.weights.h5")
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), saved, strict=True))
    assert model.get_layer("hidden").compute_dtype == "float32"
    assert np.isfinite(fit(model, x, y, callback).history["loss"]).all()


class Kernels(keras.callbacks.Callback):
    """Keeps a layer's weights after each step."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def on_train_batch_end(self, batch, logs=None):
        assert self.model is not None  # under JAX this brings the values back
        self.seen.append(keras.ops.convert_to_numpy(self.layer.kernel.value).copy())


@slow
def test_a_switch_amid_gradient_accumulation():
    """The sums of the window go on: an update comes after as many steps as without."""
    x, y = data()
    iterations = []
    for moves in ({}, {2: HIGH, 4: LOW, 7: HIGH}):
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
        model = create_model(optimizer=optimizer)
        kernels = Kernels(model.get_layer("mid"))
        fit(model, x, y, dynamic(moves), kernels)
        changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(kernels.seen)]
        iterations.append(changed)
    assert iterations[0] == iterations[1] == [False, True, False, False, True, False, False]


def test_telemetry_and_events(tmp_path):
    x, y = data(36)
    made, file = [], tmp_path / "events.jsonl"
    model = create_model()
    callback = dynamic({6: HIGH}, made, events=file)
    history = fit(model, x, y, callback, epochs=2)
    told = [t for t in made[0].told if t.steps]
    assert [(t.step, t.steps, t.skipped) for t in told] == [(s, 4, 0) for s in (4, 8, 12, 16)]
    assert {"hidden", "mid", "head"} <= set(told[0].layers)
    assert set(told[0].layers["hidden"]) == {"kernel", "bias"}
    assert all(t.step_seconds > 0.0 and np.isfinite(t.loss) for t in told)
    assert told[0].of(["hidden", "mid"]).gradient_norm > 0.0
    assert history.history["precision_switches"] == [1, 1]
    (event,), later = history.history["precision_events"]
    assert not later
    assert event["kind"], event["step"] == ("explore", 6)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["kind"] == "start"
    assert set(lines[0]["precision"].values()) == {"base"}
    assert [line["kind"] for line in lines].count("window") == 4
    fit(model, x, y, callback)
    again = [json.loads(line) for line in file.read_text().splitlines()][len(lines)]
    assert (again["kind"], again["step"], again["resumed"]) == ("start", 18, True)
    assert list(again["precision"].values()) == ["float32", "base"]


@slow
def test_the_mean_loss_of_a_window_is_that_of_its_steps():
    x, y = data(24)
    losses, made = [], []
    model = create_model()
    model.get_layer("dropout").rate = 0.0

    class Losses(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.total = 0.0

        def on_train_batch_end(self, batch, logs=None):
            total = float(logs["loss"]) * (batch + 1)
            losses.append(total - self.total)
            self.total = total

    fit(model, x, y, dynamic({}, made), Losses(), epochs=2)
    told = [t.loss for t in made[0].told]
    wanted = [np.mean(losses[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(told, wanted, rtol=1e-4)


@slow
def test_a_schedule_begins_its_phases_at_their_very_steps():
    phases = [
        {"step": 0, "policy": "float32"},
        {"step": 3},
        {"epoch": 1, "policy": "mixed_float16"},
        {"step": 13, "policy": "float32"},
    ]
    spy = Spy(name="spy")
    model = create_model(spy)
    callback = DynamicPrecision(config(controller="schedule", schedule=phases))
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(model.get_layer("mid").compute_dtype)
    )
    history = fit(model, *data(), callback, look, epochs=2)
    wanted = ["float32"] * 3 + ["bfloat16"] * 5 + ["float16"] * 5 + ["float32"] * 3
    assert seen == wanted
    assert model.optimizer.scales_loss  # one phase is in float16
    kinds = [e["kind"] for events in history.history["precision_events"] for e in events]
    # The first loss scale may be too large for weights and data drawn at random.
    assert [kind for kind in kinds if kind != "overflow"] == ["phase"] * 3


@slow
def test_reverting_takes_back_what_was_promoted():
    model = create_model()
    callback = dynamic({2: HIGH})
    x, y = data()
    fit(model, x, y, callback)
    callback.report.revert()
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert not {"train_step", "test_step"} & set(vars(model))
    fit(model, x, y)
    fit(model, x, y, callback)
    assert model.get_layer("mid").compute_dtype == "bfloat16"
    assert model.get_layer("hidden").compute_dtype == "float32"


def test_what_is_no_controller_is_refused():
    with pytest.raises(ConfigTypeError, match="Expected `controller`"):
        DynamicPrecision("mixed_bfloat16", 3)
    with pytest.raises(ConfigError, match="controller"):
        DynamicPrecision("mixed_bfloat16", "treshold")


def test_a_controller_of_ones_own():
    model = create_model()
    report = hpf.apply_policy(model, "mixed_bfloat16")
    callback = DynamicPrecision("mixed_bfloat16", StaticController(report.plan))
    fit(model, *data(), callback)
    assert callback.get_state()["name"] == "static"


def test_only_this_callback_honours_the_section():
    model = create_model()
    with pytest.warns(UserWarning, match="callbacks.DynamicPrecision"):
        hpf.apply_policy(model, config())
    assert not dynamic_warnings(create_model())


def dynamic_warnings(model):
    callback = DynamicPrecision(config())
    fit(model, *data(), callback)
    return callback.report.warnings
