import logging
import shutil

import keras
import numpy as np
import pytest
from keras import layers

from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.callbacks.precision_overrides import PrecisionOverrides
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

BACKEND = keras.backend.backend()
SCALE = 2.0**7  # at which no step of these models overflows, whatever the numbers drawn
FLOAT16 = PrecisionConfig.from_dict(
    {"policy": "mixed_float16", "loss_scale": {"initial_scale": SCALE}}
)


@keras.saving.register_keras_serializable("tests")
class Block(layers.Layer):
    """A composite layer that makes its layers when it is built."""

    seen: list[str] = []  # noqa: RUF012

    def build(self, shape):
        self.attend = layers.MultiHeadAttention(1, 2, dropout=0.1, name="attend")
        self.attend.build(shape, shape)
        self.norm = layers.LayerNormalization(name="norm")
        self.norm.build(shape)
        self.mix = layers.Dense(shape[-1], name="mix")

    def call(self, x):
        y = self.mix(self.norm(x + self.attend(x, x)))
        if not isinstance(y, keras.KerasTensor):
            self.seen.append(keras.backend.standardize_dtype(y.dtype))
        return y


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block(name="block")
        self.pool = layers.GlobalAveragePooling1D(name="pool")
        self.heads = [layers.Dense(3, activation="softmax", name="head")]

    def call(self, x):
        return self.heads[0](self.pool(self.block(x)))


def sequential():
    return keras.Sequential(
        [
            Block(name="block"),
            layers.GlobalAveragePooling1D(name="pool"),
            layers.Dense(3, activation="softmax", name="head"),
        ]
    )


def built():
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5, name="body"), layers.Dense(1, name="head")]
    )


def sequences(rows=4):
    x = np.random.default_rng().normal(size=(rows, 5, 4)).astype("float32")
    return x, np.arange(rows) % 3


def rows(size=4):
    x = np.random.default_rng().normal(size=(size, 4)).astype("float32")
    return x, x[:, :1]


def assert_as_reported(model, report):
    found = walk(model)
    assert [w.path for w in found] == [row.path for row in report.rows]
    for walked, row in zip(found, report.rows, strict=True):
        policy = keras.DTypePolicy(row.after)
        assert walked.layer.compute_dtype == policy.compute_dtype, row
        for variable in walked.layer._trainable_variables:
            assert variable.dtype == policy.variable_dtype, row


@pytest.mark.parametrize("make", [sequential, Subclassed])
def test_a_model_that_is_unbuilt_when_fit_begins(make):
    model = make()
    model.compile("adam", "sparse_categorical_crossentropy")
    rules = [
        {"layers": "block/mix", "policy": "float16"},
        {"layers": "block/attend/query", "policy": "float32"},
        {"layers": "block/nothing", "policy": "float32"},
    ]
    overrides = PrecisionOverrides(FLOAT16.replace(policy="float32", rules=rules))
    Block.seen.clear()
    with pytest.warns(UserWarning, match="block/nothing") as caught:
        history = model.fit(*sequences(), verbose=0, callbacks=[overrides], epochs=2).history
    assert sum("apply_policy" in str(w.message) for w in caught) == 1
    assert np.isfinite(history["loss"]).all()
    assert_as_reported(model, overrides.report)
    # `mix` is made unbuilt, so that its variables can be float16; under JAX and PyTorch `fit`
    # builds the model before it calls any callback.
    expected = "float16" if BACKEND == "tensorflow" else "mixed_float16"
    assert overrides.report.row("block/mix").after == expected
    assert overrides.report.row("block/mix").rule == 0
    assert overrides.report.row("block/attend/query").rule == 1
    assert Block.seen[-1] == "float16"
    # One layer in float16, whatever the model's policy: the loss is scaled.
    assert model.optimizer.scales_loss
    assert float(model.optimizer.dynamic_scale) == SCALE


@pytest.mark.slow
def test_critical_layers_that_appear_when_the_model_is_built():
    model = Subclassed()
    model.compile("adam", "sparse_categorical_crossentropy")
    overrides = PrecisionOverrides("mixed_bfloat16")
    model.fit(*sequences(), verbose=0, callbacks=[overrides])
    softmax = next(r for r in overrides.report.rows if r.class_name == "Softmax")
    assert (softmax.after, softmax.result_dtype) == ("float32", "bfloat16")
    assert overrides.report.row("head").after == "float32"
    assert overrides.report.row("block/mix").after == "mixed_bfloat16"
    assert_as_reported(model, overrides.report)
    overrides.report.revert()
    assert {w.layer.dtype_policy.name for w in walk(model)} == {"float32"}
    assert not [w.path for w in walk(model) if "call" in vars(w.layer)]
    model.fit(*sequences(), verbose=0)


def test_fit_again_and_compile_again(caplog):
    model = built()
    model.compile("adam", "mse")
    overrides = PrecisionOverrides(FLOAT16)
    with caplog.at_level(logging.INFO, "deepseek_hpf.callbacks.precision_overrides"):
        model.fit(*rows(), verbose=0, callbacks=[overrides])
        optimizer, function = model.optimizer, model.train_function
        assert overrides.report.changed
        model.fit(*rows(), verbose=0, callbacks=[overrides])
    assert not overrides.report.changed
    assert (model.optimizer, model.train_function) == (optimizer, function)
    assert int(optimizer.iterations) == 2
    logged = [r.getMessage() for r in caplog.records if r.name.endswith("precision_overrides")]
    assert len(logged) == 1
    assert "mixed_float16" in logged[0]
    model.compile("sgd", "mse")
    model.fit(*rows(), verbose=0, callbacks=[overrides])
    assert isinstance(model.optimizer, LossScaleOptimizer)
    assert int(model.optimizer.iterations) == 1
    # Keras wrapped the new optimizer itself, since the model is now in mixed_float16.
    assert float(model.optimizer.dynamic_scale) == SCALE


@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize("settings", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_ways_to_compile(settings):
    model = built()
    model.compile("adam", "mse", **settings)
    overrides = PrecisionOverrides(FLOAT16)
    model.fit(*rows(8), batch_size=2, verbose=0, callbacks=[overrides])
    assert int(model.optimizer.iterations) == 4
    assert_as_reported(model, overrides.report)


def test_what_the_file_says_of_jit_is_done_and_reported():
    model = built()
    model.compile("adam", "mse", jit_compile=True)
    overrides = PrecisionOverrides(PrecisionConfig(policy="mixed_bfloat16", jit_compile=False))
    model.fit(*rows(), verbose=0, callbacks=[overrides])
    assert model.jit_compile is False
    assert overrides.report.jit_compile == "False, as the configuration says (before: True)"
    overrides.report.revert()
    assert model.jit_compile is True


def test_scale_counter_and_slots_of_keras_are_carried_over():
    model = built()
    inner = keras.optimizers.SGD(momentum=0.5)
    model.compile(keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**9), "mse")
    model.fit(*rows(), verbose=0)
    slots = [np.array(v) for v in inner.variables]
    overrides = PrecisionOverrides(FLOAT16)
    overrides.set_model(model)
    assert type(model.optimizer) is LossScaleOptimizer
    assert float(model.optimizer.dynamic_scale) == 2**9
    assert int(model.optimizer.step_counter) == 1
    for found, slot in zip(model.optimizer.inner_optimizer.variables, slots, strict=True):
        np.testing.assert_array_equal(np.array(found), slot)
    model.fit(*rows(), verbose=0, callbacks=[overrides])
    assert int(model.optimizer.iterations) == 2
    overrides.report.revert()
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    assert model.optimizer.inner_optimizer is inner
    assert int(model.optimizer.step_counter) == 2
    model.fit(*rows(), verbose=0)


def test_a_file_brings_the_state_back(tmp_path):
    model = built()
    model.compile(keras.optimizers.SGD(momentum=0.5), "mse")
    model.fit(*rows(8), batch_size=2, verbose=0, callbacks=[PrecisionOverrides(FLOAT16)])
    model.optimizer.dynamic_scale.assign(2.0**7)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again.optimizer) is LossScaleOptimizer
    assert int(again.optimizer.iterations) == 4
    assert float(again.optimizer.dynamic_scale) == 2**7
    overrides = PrecisionOverrides(FLOAT16)
    again.fit(*rows(8), batch_size=2, verbose=0, callbacks=[overrides])
    assert int(again.optimizer.iterations) == 8
    assert_as_reported(again, overrides.report)


@pytest.mark.parametrize("first", [True, False])
def test_either_order_with_a_callback_that_restores(tmp_path, first):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(*more):
        model = built()
        model.compile(keras.optimizers.SGD(0.01, momentum=0.5), "mse")
        ours = PrecisionOverrides(FLOAT16)
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "b"), delete_checkpoint=False)
        callbacks = [ours, backup] if first else [backup, ours]
        model.fit(
            x, y, verbose=0, batch_size=2, epochs=2, shuffle=False, callbacks=[*callbacks, *more]
        )
        return model

    x, y = rows()
    with pytest.raises(KeyboardInterrupt):
        run(Stop())
    resumed = run()
    assert int(resumed.optimizer.iterations) == 4


def test_what_is_no_policy_is_refused_at_once():
    with pytest.raises(ConfigTypeError, match="policy"):
        PrecisionOverrides(None)
    with pytest.raises(ConfigError, match="mixed_float17"):
        PrecisionOverrides("mixed_float17")


@pytest.mark.slow
@pytest.mark.backend("torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles with g++")
def test_a_step_compiled_by_pytorch_skips_bad_batches_only():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=True)
    x = np.random.default_rng().random((16, 4), "float32")
    x[:4] = np.nan
    overrides = PrecisionOverrides("mixed_bfloat16")
    with pytest.warns(RuntimeWarning, match="NaN or inf"):
        history = model.fit(
            x, np.ones((16, 1)), batch_size=4, shuffle=False, verbose=0, callbacks=[overrides]
        ).history
    assert history["skipped_steps"] == [1]
    assert int(model.optimizer.iterations) == 3
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(w).all() for w in model.get_weights())
