"""Planted faults: what made the step overflow, at which layer, and that nothing else changed."""

import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.adapters.apply import apply_policy
from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.callbacks import DynamicPrecision
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.dynamic.attribution import attribute, bad_samples
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.policy import MixedPrecisionPolicy

BACKEND = keras.backend.backend()
SCALE = 2.0**10


class Times(keras.layers.Layer):
    """Multiplies its input and, apart from that, its gradient by powers of two, in its dtype."""

    def __init__(self, bits=0, gradient_bits=0, **kwargs):
        super().__init__(**kwargs)
        self.bits, self.gradient_bits = bits, gradient_bits

    def call(self, x):
        steep = shifted(x - ops.stop_gradient(x), self.gradient_bits)
        return shifted(ops.stop_gradient(x) if self.gradient_bits else x, self.bits) + steep


def shifted(x, bits):
    """Times `2 ** bits`, by factors that float16 has."""
    for done in range(0, bits, 15):
        x = x * 2.0 ** min(15, bits - done)
    return x


def dense(name, policy="mixed_float16", **options):
    return keras.layers.Dense(4, name=name, dtype=policy, **options)


def chain(*middle, scale=SCALE, loss="mse", **options):
    """A model in float16 with a layer in its middle, compiled, its optimizer built."""
    layers = [keras.Input((4,)), dense("first"), *middle, dense("last"), dense("head", "float32")]
    return compiled(keras.Sequential(layers), scale, loss, **options)


def compiled(model, scale=SCALE, loss="mse", **options):
    model.compile(
        LossScaleOptimizer("sgd", initial_scale=scale), loss, jit_compile=False, **options
    )
    model.optimizer.build(model.trainable_variables)
    return model


def batch(size=8, weighted=False):
    numbers = np.random.default_rng()
    x, y = (numbers.uniform(0.5, 1.5, size=(size, 4)).astype("float32") for _ in range(2))
    weights = numbers.uniform(0.5, 1.5, size=size).astype("float32")
    data = (x, y, weights) if weighted else (x, y)
    return tensors(data)


def tensors(data):
    return keras.tree.map_structure(
        lambda value: None if value is None else ops.convert_to_tensor(value), data
    )


def found(model, data, scale=SCALE):
    overflow = attribute(model, data, step=7, scale=scale)
    assert (overflow.step, overflow.scale) == (7, scale)
    return overflow.cause, overflow.layer, overflow.phase


def test_a_forward_overflow():
    middle = Times(40, name="middle", dtype="mixed_float16")
    assert found(chain(middle), batch()) == ("activation", "middle", "forward")


def test_a_gradient_that_overflows_at_any_scale():
    middle = Times(gradient_bits=40, name="middle", dtype="mixed_float16")
    assert found(chain(middle), batch()) == ("activation", "middle", "backward")


def test_the_gradient_of_a_weight_alone_overflows():
    """Its input is large and has no gradient of its own."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            dense("first", kernel_initializer="zeros"),
            dense("head", "float32", kernel_initializer="ones"),
        ]
    )
    x, y = batch(64)
    assert found(compiled(model), (x * 3e4, y * 0.1)) == ("loss_scale", "first", "backward")


def test_a_scale_that_is_too_large():
    for bits, scale, layer in [(0, 2.0**24, "last"), (10, 2.0**13, "middle")]:
        middle = Times(gradient_bits=bits, name="middle", dtype="mixed_float16")
        model = chain(middle)
        assert found(model, batch(), scale) == ("loss_scale", layer, "backward")
    assert found(model, batch(), 1.0) == ("unknown", None, None)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_data_blames_no_layer(bad):
    x, y, weights = (np.array(ops.convert_to_numpy(v)) for v in batch(8, weighted=True))
    x[3, 1], weights[5] = bad, bad
    model = chain()
    overflow = attribute(model, tensors((x, y, weights)), step=1, scale=SCALE)
    assert (overflow.cause, overflow.layer, overflow.samples) == ("data", None, (3, 5))
    y[0, 2] = bad
    nested = tensors({"images": (x, {"labels": [y, None]}), "weights": weights})
    assert bad_samples(nested) == (0, 3, 5)


def test_bad_samples_of_odd_batches():
    assert bad_samples(()) == ()
    assert bad_samples((None, np.arange(3), np.zeros((0, 2), "float32"))) == ()
    assert bad_samples(np.array([[np.nan]], "float32")) == (0,)
    assert bad_samples(np.float32("nan")) == (0,)
    assert bad_samples(np.array([5e-324, 1e-40, -0.0])) == ()


def test_a_loss_that_is_not_finite():
    def undefined(y, y_pred):
        return ops.mean(y_pred * ops.log(-ops.abs(y_pred) - 1.0), axis=-1)

    assert found(chain(loss=undefined), batch()) == ("activation", None, "loss")


def test_the_gradient_of_the_loss_that_is_not_finite():
    def steep(y, y_pred):
        return ops.mean(ops.sqrt(y_pred - ops.stop_gradient(y_pred)), axis=-1)

    assert found(chain(loss=steep), batch()) == ("activation", None, "loss")


def test_a_finite_step_and_one_that_cannot_be_run_are_unknown():
    model = chain()
    assert found(model, batch()) == ("unknown", None, None)
    assert found(model, batch(), None) == ("unknown", None, None)
    assert found(model, (ops.zeros((2, 7)), ops.zeros((2, 4)))) == ("unknown", None, None)
    assert found(model, ()) == ("unknown", None, None)


class Nested(keras.Model):
    """A subclassed model with several inputs and outputs, a shared layer and a nested model."""

    def __init__(self, bits):
        super().__init__()
        self.shared = dense("shared")
        times = Times(bits, name="times", dtype="mixed_float16")
        self.inner = keras.Sequential([keras.Input((4,)), dense("a"), times], name="inner")
        self.heads = [dense("one", "float32"), dense("two", "float32")]

    def call(self, inputs, training=False):
        x = self.inner(self.shared(inputs["a"]) + self.shared(inputs["b"]))
        return [head(x) for head in self.heads]


@pytest.mark.parametrize("masters", [False, True])
def test_a_sum_of_accumulated_gradients_that_overflows(masters):
    """Gradients of 40,000 each: the second one takes a sum in float16 past 65,504."""
    names = {"kernel_initializer": "zeros", "use_bias": False, "dtype": "float16"}
    layers = [keras.layers.Dense(1, name=name, **names) for name in ("first", "summed")]
    inputs = keras.Input((4,))
    small, large = layers[0](inputs), layers[1](inputs * 2.0**15)
    model = keras.Model(inputs, keras.layers.Add(dtype="float32")([small, large]))
    inner = keras.optimizers.SGD(2.0**-10, gradient_accumulation_steps=4)
    optimizer = LossScaleOptimizer(inner, initial_scale=1.0, master_weights=masters)
    model.compile(optimizer, lambda y, y_pred: ops.mean(y_pred - y), jit_compile=False)
    data = tensors((np.full((2, 4), 1.25, "float32"), np.zeros((2, 1), "float32")))
    skipped = []
    for _ in range(2):
        model.train_on_batch(*data)
        skipped.append(int(optimizer.skipped_steps))
    assert skipped == ([0, 0] if masters else [0, 1])
    blamed = ("unknown", None, None) if masters else ("accumulation", "summed", "backward")
    assert found(model, data, scale=1.0) == blamed


def test_a_subclassed_model_with_nested_and_shared_layers():
    x, y = batch()
    data = ({"a": x, "b": x}, [y, y])
    model = Nested(40)
    model(data[0])
    assert found(compiled(model, loss=["mse", "mae"]), data) == (
        "activation",
        "inner/times",
        "forward",
    )


def test_an_operation_between_layers_blames_the_layer_before_it():
    inputs = keras.Input((4,))
    hidden = dense("hidden")(inputs)
    model = keras.Model(inputs, dense("head", "float32")(ops.relu(hidden * 1e6) + 1.0))
    x, y = batch()
    model.layers[1].bias.assign(ops.ones(4))
    assert found(compiled(model), (x, y)) == ("activation", "hidden", "forward")


class OwnCall(keras.Model):
    def __init__(self):
        super().__init__(dtype="mixed_float16")
        self.hidden = dense("hidden")

    def call(self, x):
        return self.hidden(x) * 1e6


def test_what_the_model_itself_does_to_a_result_is_blamed_on_the_layer_that_made_it():
    model = OwnCall()
    model(ops.zeros((1, 4)))
    assert found(compiled(model), batch()) == ("activation", "hidden", "forward")


def test_a_regularizer():
    model = chain(dense("middle", kernel_regularizer=lambda w: ops.sum(w) * np.inf))
    assert found(model, batch()) == ("activation", None, "loss")


def test_a_recurrent_layer():
    layers = [
        keras.Input((3, 4)),
        keras.layers.LSTM(4, name="lstm", dtype="mixed_float16"),
        Times(gradient_bits=40, name="times", dtype="mixed_float16"),
        dense("head", "float32"),
    ]
    model = compiled(keras.Sequential(layers))
    x, y = batch()
    x = ops.stack([x, x, x], axis=1)
    assert found(model, (x, y)) == ("activation", "times", "backward")
    model.layers[1].gradient_bits = 0
    assert found(model, (x, y)) == ("unknown", None, None)
    kernel = model.layers[0].cell.kernel
    kernel.assign(kernel * np.inf)
    cause, layer, phase = found(model, (x, y))
    assert (cause, phase) == ("activation", "forward")
    assert layer.startswith("lstm")


def everything(model):
    """All that a step might change, as bytes."""
    variables = [
        *model.variables,
        *model.optimizer.variables,
        *(v for metric in model.metrics for v in metric.variables),
        *(
            s
            for layer in model._flatten_layers()
            for s in (g.state for g in layer._seed_generators)
        ),
    ]
    values = [np.asarray(ops.convert_to_numpy(v)).tobytes() for v in variables]
    generators = [random.getstate(), np.random.get_state()[1].tobytes()]
    if BACKEND == "torch":
        import torch

        generators.append(torch.get_rng_state().numpy().tobytes())
    hooks = [sorted(vars(layer)) for layer in model._flatten_layers()]
    return values, generators, hooks, sorted(vars(model.optimizer))


@pytest.mark.slow
@pytest.mark.parametrize("guarded", [True, False])
def test_nothing_changes_and_training_goes_on_alike(guarded):
    results = []
    for attributes in (False, True):
        keras.utils.set_random_seed(3)
        middle = [
            keras.layers.Dropout(0.5, name="drop"),
            keras.layers.BatchNormalization(name="norm"),
            Times(name="times", dtype="mixed_float16"),
        ]
        model = chain(*middle, metrics=["mae"])
        if guarded:
            install_guard(model)
        rows = np.random.default_rng(5).normal(size=(8, 4)).astype("float32")
        logs = [model.train_on_batch(rows, rows, return_dict=True)]
        if attributes:
            before = everything(model)
            for bits, scale, cause in [(0, 1.0, "unknown"), (40, SCALE, "activation")]:
                model.get_layer("times").bits = bits
                assert found(model, tensors((rows, rows)), scale)[0] == cause
            model.get_layer("times").bits = 0
            found(model, (rows, ops.zeros((3, 3))))
            assert everything(model) == before
        logs.append(model.train_on_batch(rows, rows, return_dict=True))
        results.append((logs, everything(model)[0]))
    assert results[0] == results[1]


@pytest.mark.slow
def test_under_the_kernels_and_rules_of_a_configuration():
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.Conv2D(4, 3, name="late")(x)
    model = keras.Model(inputs, keras.layers.Flatten(name="flat")(x))
    model.compile("sgd", "mse", jit_compile=False)
    rules = [{"layers": "norm", "policy": "float32"}]
    apply_policy(model, MixedPrecisionPolicy("mixed_float16", config={"rules": rules}))
    model.optimizer.build(model.trainable_variables)
    numbers = np.random.default_rng()
    images, labels = numbers.normal(size=(4, 6, 6, 3)), numbers.normal(size=(4, 16))
    data = tensors((images.astype("float32"), labels.astype("float32")))
    assert found(model, data) == ("unknown", None, None)
    late = model.get_layer("late").kernel
    late.assign(late * 1e6)
    assert found(model, data) == ("activation", "late", "forward")
    conv = model.get_layer("conv").kernel
    conv.assign(conv * 1e6)
    assert found(model, data) == ("activation", "conv", "forward")


class Looking(keras.callbacks.Callback):
    """Attributes the step before, in the middle of `fit`."""

    def __init__(self, model, data):
        super().__init__()
        self.of, self.data, self.causes = model, data, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch:
            self.causes.append(attribute(self.of, self.data, step=batch, scale=2.0**24).cause)


@pytest.mark.slow
def test_in_the_middle_of_fit():
    rows = np.random.default_rng().normal(size=(12, 4)).astype("float32")
    results = []
    for looks in (False, True):
        keras.utils.set_random_seed(3)
        model = chain(keras.layers.Dropout(0.5))
        install_guard(model)
        looking = Looking(model, tensors((rows[:4], rows[:4])))
        callbacks = [looking] if looks else []
        history = model.fit(rows, rows, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
        results.append((history.history, everything(model)[0]))
    assert looking.causes == ["loss_scale"] * 2
    assert results[0] == results[1]


@pytest.mark.backend("tensorflow", "torch")
def test_a_train_step_of_its_own():
    class Own(keras.Sequential):
        def train_step(self, data):
            x, y = data
            if BACKEND == "torch":
                self.zero_grad()
                loss = ops.mean(ops.square(self(x, training=True) - y))
                self.optimizer.scale_loss(loss).backward()
                gradients = [v.value.grad for v in self.trainable_weights]
            else:
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    loss = ops.mean(ops.square(self(x, training=True) - y))
                    scaled = self.optimizer.scale_loss(loss)
                gradients = tape.gradient(scaled, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}

    times = Times(gradient_bits=40, name="times", dtype="mixed_float16")
    model = Own([keras.Input((4,)), dense("first"), times, dense("head", "float32")])
    model.compile(LossScaleOptimizer("sgd", initial_scale=SCALE))
    model.optimizer.build(model.trainable_variables)
    assert found(model, batch()) == ("activation", "times", "backward")
    times.gradient_bits = 10
    assert found(model, batch(), 2.0**13) == ("loss_scale", "times", "backward")


def step_on_jax(model, state, data):
    """A step as Keras's guide for JAX writes it, under the loss scale that the state holds."""
    import jax

    trainable, non_trainable, slots, metrics = state
    x, y = data
    optimizer = model.optimizer

    def scaled_loss(trainable, non_trainable):
        y_pred, after = model.stateless_call(trainable, non_trainable, x, training=True)
        loss = ops.mean(ops.square(y_pred - y))
        held = list(zip(optimizer.variables, slots, strict=True))
        with keras.StatelessScope(state_mapping=held):
            return optimizer.scale_loss(loss), (loss, after)

    gradients_of = jax.value_and_grad(scaled_loss, has_aux=True)
    (_, (loss, non_trainable)), gradients = gradients_of(trainable, non_trainable)
    trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
    return {"loss": loss}, (trainable, non_trainable, slots, metrics)


class SteppingOnJax(keras.Model):
    """A subclassed model with a step of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.head = dense("first", None), dense("head", "float32")
        self.times = Times(gradient_bits=40, name="times")

    def call(self, x, training=False):
        return self.head(self.times(self.first(x)))

    def train_step(self, state, data):
        return step_on_jax(self, state, data)


@pytest.mark.backend("jax")
def test_a_train_step_of_its_own_on_jax():
    model = SteppingOnJax()
    for layer in (model.first, model.times):
        layer.dtype_policy = keras.DTypePolicy("mixed_float16")
    model(ops.zeros((1, 4)))
    compiled(model)
    assert found(model, batch()) == ("activation", "times", "backward")
    model.times.gradient_bits = 10
    assert found(model, batch(), 2.0**13) == ("loss_scale", "times", "backward")


@pytest.mark.slow
@pytest.mark.backend("jax")
def test_a_train_step_of_its_own_on_jax_in_fit():
    """Two plans, each traced from the model's own step: promoted, the layer overflows no more."""
    model = SteppingOnJax()
    model.compile(keras.optimizers.SGD(1e-12), "mse")
    x, y = (ops.convert_to_numpy(value) for value in batch(16))
    settings = {"policy": "mixed_float16", "dynamic": {"max_blocks": 2}}
    callback = DynamicPrecision(PrecisionConfig.from_dict(settings))
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    overflow, *_ = events = [e for of in history.history["precision_events"] for e in of]
    assert (overflow["step"], overflow["cause"], overflow["layer"]) == (0, "activation", "times")
    assert "promote" in [event["kind"] for event in events]
    assert model.times.compute_dtype == "float32"
    assert int(ops.convert_to_numpy(model.optimizer.skipped_steps.value)) < 4
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_replicas():
    script = Path(__file__).with_name("attribution_replicas_tensorflow.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr[-2000:]
