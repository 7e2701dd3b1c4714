import warnings

import keras
import numpy as np
import pytest
from keras import layers

import deepseek_hpf.adapters.applied as applied_module
from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.adapters.output import graph_operations
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.policy import MixedPrecisionPolicy


@keras.saving.register_keras_serializable("tests")
class Probe(layers.Layer):
    """Hands its input on and notes its dtype, inside a trace as well."""

    seen: list[str] = []  # noqa: RUF012

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            self.seen.append(keras.backend.standardize_dtype(x.dtype))
        return x


def small_model(compiled=True):
    x = keras.Input((4,))
    y = layers.Dense(4, activation="relu", name="hidden")(x)
    y = Probe(name="probe")(y)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Add(name="sum")([y, layers.Dense(4, name="branch")(x)])
    y = layers.Dense(3, activation="softmax", name="head")(y)
    model = keras.Model(x, y, name="small")
    if compiled:
        model.compile("adam", "sparse_categorical_crossentropy")
    Probe.seen.clear()  # Keras has traced the call to infer shapes
    return model


def config(*rules, policy="mixed_bfloat16", **settings):
    return PrecisionConfig.from_dict({"policy": policy, "rules": list(rules), **settings})


def data(rows=4, columns=4):
    random = np.random.default_rng()
    return random.normal(size=(rows, columns)).astype("float32"), np.arange(rows) % 3


def assert_as_reported(model, report):
    for walked in walk(model):
        row, policy = report.row(walked.path), keras.DTypePolicy(report.row(walked.path).after)
        assert walked.layer.compute_dtype == policy.compute_dtype, row
        assert type(walked.layer.dtype_policy) is keras.DTypePolicy
        for variable in walked.layer._trainable_variables:
            assert variable.dtype == policy.variable_dtype, row


def state(model):
    """What `apply_policy` may touch, by identity where that counts."""
    return (
        [(w.path, w.layer.dtype_policy, vars(w.layer).get("call")) for w in walk(model)],
        model.dtype_policy,
        model.optimizer,
        model._compile_config.config["optimizer"],
        model.jit_compile,
        {n: vars(model).get(n) for n in ("train_step", "test_step", "call")},
        [vars(op).get("call") for op in graph_operations(model)],
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_model_trains_in_what_the_report_says(policy):
    model = small_model()
    # A scale at which four random rows do not overflow: an epoch of skipped steps logs NaN.
    report = apply_policy(model, config(policy=policy, loss_scale={"initial_scale": 8}))
    assert_as_reported(model, report)
    assert report.row("head").after == "float32"
    assert report.row("hidden").after == policy
    assert isinstance(model.optimizer, LossScaleOptimizer)
    assert model.optimizer.scales_loss == (policy == "mixed_float16")
    model.fit(*data(), verbose=0)
    Probe.seen[:-1] = []  # Keras also traces to infer shapes, in the dtypes at build
    history = model.fit(*data(), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert set(Probe.seen) == {keras.DTypePolicy(policy).compute_dtype}
    assert keras.backend.standardize_dtype(model(data()[0]).dtype) == "float32"
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_rules_from_the_general_to_the_particular():
    model = small_model(compiled=False)
    report = apply_policy(
        model,
        config(
            {"layer_type": "Dense", "policy": "mixed_float16"},
            {"layers": "h*", "policy": "float32"},
            {"layers": "hidden", "policy": "mixed_bfloat16"},
            {"layer_type": "BatchNormalization", "policy": "float32"},
        ),
    )
    found = {row.path: (row.after, row.rule) for row in report.rows}
    assert found == {
        "hidden": ("mixed_bfloat16", 2),
        "probe": ("mixed_bfloat16", None),
        "norm": ("float32", 3),
        "branch": ("mixed_float16", 0),
        "sum": ("mixed_bfloat16", None),
        "head": ("float32", 1),
    }
    assert_as_reported(model, report)
    assert "not compiled" in report.optimizer
    assert report.plan["branch"].policy == "mixed_float16"


def test_one_warning_for_everything_and_only_once():
    model = small_model(compiled=False)
    settings = config(
        {"layers": "haed", "policy": "float32"},
        {"layers": "head", "policy": "mixed_bfloat16", "backward": "float32", "kernel": True},
        {"layers": "branch", "activations": "int8", "kernel": False},
        dynamic={"controller": "threshold"},
    )
    with pytest.warns(UserWarning, match="apply_policy") as caught:
        report = apply_policy(model, settings)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert 'the nearest layer is "head"' in text
    assert "critical layers in low precision: head (rules[1])" in text
    assert "dynamic" in text
    assert "rules[1] asks for kernels; " in text
    assert "rules[2].kernel" not in text
    assert report.row("head").after == "mixed_bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert apply_policy(model, settings).warnings == report.warnings


def test_twice_then_another_then_back():
    model = small_model()
    before = state(model)
    first = apply_policy(model, config(jit_compile=False))
    after = state(model)
    assert first.changed
    second = apply_policy(model, config(jit_compile=False))
    assert not second.changed
    assert not any(row.changed for row in second.rows)
    assert state(model) == after
    third = apply_policy(model, "mixed_float16")
    assert third.changed
    assert third.row("hidden").after == "mixed_float16"
    assert third.row("head").reason == "the model's output"
    assert model.optimizer.scales_loss
    assert model._compile_config.config["optimizer"] is model.optimizer
    third.revert()
    assert state(model) == before
    first.revert()  # nothing is left to take back
    assert state(model) == before


def test_compiled_functions_run_what_is_in_force():
    model = small_model()
    x, y = data()
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    model.fit(x, y, verbose=0)
    for policy, dtype in (("mixed_bfloat16", "bfloat16"), ("mixed_float16", "float16")):
        report = apply_policy(model, policy)
        for run in (model.fit, model.evaluate, lambda x, _, verbose: model.predict(x, verbose=0)):
            Probe.seen.clear()
            run(x, y, verbose=0)
            assert set(Probe.seen) == {dtype}
    function = model.train_function
    apply_policy(model, "mixed_float16")
    assert model.train_function is function
    report.revert()
    for run in (model.fit, model.evaluate):
        Probe.seen.clear()
        run(x, y, verbose=0)
        assert set(Probe.seen) <= {"float32"}


@pytest.mark.parametrize("stage", ["install_guard", "set_optimizer", "remake_compiled_functions"])
@pytest.mark.parametrize("applied_before", [False, True])
def test_all_or_nothing(monkeypatch, stage, applied_before):
    model = small_model()
    if applied_before:
        apply_policy(model, "mixed_bfloat16")
    before = [policy for _, policy, _ in state(model)[0]]
    optimizer, guarded = model.optimizer, "train_step" in vars(model)

    def fail(*args, **kwargs):
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(applied_module, stage, fail)
        if stage == "install_guard":
            patch.setattr(applied_module.Applied, "_keep_guard", lambda self: None)
        with pytest.raises(RuntimeError, match="no"):
            apply_policy(model, "mixed_float16")
    assert [policy for _, policy, _ in state(model)[0]] == before
    assert model.optimizer is optimizer
    if stage != "install_guard":
        assert ("train_step" in vars(model)) == guarded
    report = apply_policy(model, "mixed_float16")
    assert_as_reported(model, report)


def test_a_layer_that_refuses_half_way_leaves_no_trace():
    class Refusing(layers.Dense):
        @property
        def dtype_policy(self):
            return super().dtype_policy

        @dtype_policy.setter
        def dtype_policy(self, value):
            raise ValueError("refused")

    model = keras.Sequential([keras.Input((2,)), layers.Dense(2), Refusing(2), layers.Dense(1)])
    model.compile("sgd", "mse")
    before = state(model)
    with pytest.raises(ValueError, match="refused"):
        apply_policy(model, "mixed_bfloat16")
    assert state(model) == before


def test_policies_tell_the_truth_about_built_variables():
    x = keras.Input((4,))
    y = layers.Dense(4, name="full")(x)
    y = layers.Dense(4, name="pure", dtype="bfloat16")(y)
    y = layers.Dense(1, name="head")(y)
    model = keras.Model(x, y)
    report = apply_policy(
        model,
        config(
            {"layers": "full", "policy": "bfloat16"},
            {"layers": "pure", "policy": "float32"},
            {"layers": "head", "policy": "float64"},
        ),
    )
    assert [row.after for row in report.rows] == ["mixed_bfloat16", "bfloat16", "float32"]
    assert "its variables are float32" in report.row("full").reason
    assert "build the model in the policy's scope" in report.row("pure").reason
    assert_as_reported(model, report)


def test_an_unbuilt_layer_can_get_low_precision_variables():
    model = keras.Sequential([layers.Dense(2, name="a"), layers.Dense(1, name="b")])
    report = apply_policy(model, config({"layers": "a", "policy": "bfloat16"}))
    model.build((None, 3))
    assert model.layers[0].kernel.dtype == "bfloat16"
    assert_as_reported(model, report)


def test_a_dtype_given_to_a_layer_stays(global_dtype_policy):
    with MixedPrecisionPolicy("mixed_bfloat16").scope():
        x = keras.Input((4,))
        y = layers.Dense(4, name="given", dtype="float32")(x)
        y = layers.Dense(4, name="inherited")(y)
        model = keras.Model(x, layers.Dense(1, name="head")(y))
    report = apply_policy(model, "mixed_float16")
    assert report.row("given").after == "float32"
    assert "a dtype of its own" in report.row("given").reason
    assert report.row("inherited").after == "mixed_float16"
    ruled = apply_policy(
        model, config({"layers": "given", "policy": "mixed_float16"}, policy="mixed_float16")
    )
    assert ruled.row("given").after == "mixed_float16"
    # Keras does not save the policy of a functional model itself.
    report = apply_policy(model, "mixed_bfloat16")
    again = keras.Model.from_config(model.get_config())
    assert again.dtype_policy.name == "float32"
    afresh = apply_policy(again, "mixed_float16")
    assert [r.after for r in afresh.rows] == ["float32", "mixed_float16", "float32"]


@pytest.mark.parametrize("others", [0, 1, 2])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_low_dtype_given_to_a_layer_stays_however_few_the_others(policy, others):
    given = layers.Dense(4, name="given", dtype="mixed_float16")
    model = keras.Sequential(
        [keras.Input((4,)), given, *(layers.Dense(4) for _ in range(others)), layers.Dense(1)]
    )
    model.compile("adam", "mse")
    report = apply_policy(model, policy)
    assert report.row("given").after == "mixed_float16"
    assert {row.after for row in report.rows[1:-1]} <= {policy}
    assert model.optimizer.scales_loss


def test_what_cannot_be_changed_is_left():
    x = keras.Input((4,))
    y = layers.Dense(4, name="quantized")(x)
    y = layers.Dense(4, name="mapped", dtype=keras.dtype_policies.DTypePolicyMap())(y)
    y = layers.Dense(4, name="given", dtype=MixedPrecisionPolicy("float32"))(y)
    model = keras.Model(x, layers.Dense(1, name="head")(y))
    model.get_layer("quantized").quantize("int8")
    policies = [layer.dtype_policy for layer in model.layers[1:3]]
    report = apply_policy(model, "mixed_bfloat16")
    assert [layer.dtype_policy for layer in model.layers[1:3]] == policies
    assert "quantized (int8)" in report.row("quantized").reason
    assert "DTypePolicyMap" in report.row("mapped").reason
    assert report.row("given").after == "mixed_bfloat16"
    model(data()[0])


def test_an_object_of_ours_does_not_stay_in_a_layer():
    policy = MixedPrecisionPolicy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2, dtype=policy)])
    apply_policy(model, policy)
    assert type(model.layers[0].dtype_policy) is keras.DTypePolicy
    assert "deepseek" not in model.to_json()


def test_compile_after_apply():
    model = small_model()
    apply_policy(model, "mixed_float16")
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    assert not isinstance(model.optimizer, LossScaleOptimizer)
    report = apply_policy(model, "mixed_float16")
    assert report.changed
    assert isinstance(model.optimizer, LossScaleOptimizer)
    assert type(model.optimizer.inner_optimizer) is type(keras.optimizers.SGD())
    inner = keras.optimizers.SGD()
    model.compile(inner, "sparse_categorical_crossentropy")
    report.revert()
    assert "train_step" not in vars(model)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)  # Keras's own
    assert not isinstance(model.optimizer, LossScaleOptimizer)


def test_duplicate_names_are_ambiguous_and_said_to_be():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b = layers.Dense(2, name="fc"), layers.Dense(2, name="fc")

        def call(self, x):
            return self.b(self.a(x))

    model = Twins()
    model(np.ones((1, 2)))
    with pytest.warns(UserWarning, match="first of 2 layers of that name: fc, fc:2"):
        report = apply_policy(model, config({"layers": "fc", "policy": "float32"}))
    assert [r.after for r in report.rows] == ["float32", "mixed_bfloat16"]
    nested = keras.Sequential(
        [
            keras.Input((2,)),
            *(keras.Sequential([layers.Dense(2, name="fc")], name=n) for n in ("left", "right")),
        ]
    )
    with pytest.warns(UserWarning, match='the name of 2 layers: left/fc, right/fc.*"\\*/fc"'):
        apply_policy(nested, config({"layers": "fc", "policy": "float32"}))


@pytest.mark.parametrize("policy", [None, 3, keras.dtype_policies.DTypePolicyMap])
def test_what_is_no_policy(policy):
    policy = policy() if isinstance(policy, type) else policy
    with pytest.raises(ConfigTypeError, match="Received: policy="):
        apply_policy(small_model(compiled=False), policy)


def test_what_cannot_be_trained():
    with pytest.raises(ConfigError, match="float dtype"):
        apply_policy(small_model(compiled=False), "int32")
    with pytest.raises(ConfigTypeError, match=r"keras\.Model"):
        apply_policy(layers.Dense(2), "float32")
