"""The loss scale set from the host, and foreseen, in real trainings."""

import json
import math
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.config import DynamicConfig
from deepseek_hpf.dynamic.loss_scale import PredictiveScaling, set_loss_scale
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.scale_rule import ScaleRules
from deepseek_hpf.scheduling.telemetry import GradientStatistics, Overflow, Telemetry

BACKEND = keras.backend.backend()
# JAX compiles by itself; compiling PyTorch's step takes minutes.
COMPILED = ["auto", pytest.param(True, marks=pytest.mark.slow)][
    : 2 if BACKEND == "tensorflow" else 1
]
STATE = ("step_counter", "skipped_steps", "clipped_steps", "gradient_norm", "consecutive_skips")


class Traces(keras.layers.Layer):
    """Counts how often it is called in training: under a compiler, how often it is traced."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def call(self, x, training=False):
        self.count += bool(training)
        return x


class BetweenSteps(keras.callbacks.Callback):
    """Calls a function with the number of the step that comes next."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_train_batch_begin(self, batch, logs=None):
        self.function(batch)


def current(model, variable):
    """Reads a variable of the optimizer between two steps; nothing is synchronised by it."""
    if BACKEND == "jax":
        from deepseek_hpf.adapters.guard_jax import current_value

        return np.asarray(current_value(model, variable))
    return keras.ops.convert_to_numpy(variable)


def bits(variables):
    return [keras.ops.convert_to_numpy(v).tobytes() for v in variables]


def trained(scales, jit_compile="auto", steps=8, **options):
    """Trains in float32, whose every gradient is the same under any scale that is a power of 2."""
    keras.utils.set_random_seed(7)
    traces = Traces()
    layers = [
        keras.Input((4,)),
        keras.layers.Dense(5),
        keras.layers.BatchNormalization(),
        traces,
        keras.layers.Dropout(0.5),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    optimizer = LossScaleOptimizer("adam", initial_scale=2.0**10, max_scale=2.0**16)
    model.compile(optimizer, "mse", jit_compile=jit_compile, **options)
    optimizer.build(model.trainable_variables)
    install_guard(model)
    traces.count = 0
    seen = []

    def between(step):
        seen.append(float(current(model, optimizer.dynamic_scale)))
        if step in scales:
            set_loss_scale(model, scales[step])

    random = np.random.default_rng(7)
    x = random.normal(size=(4 * steps, 4)).astype("float32")
    x[4] = np.inf  # the second step is skipped
    fit = {"batch_size": 4, "verbose": 0, "shuffle": False}
    model.fit(x, x[:, :1], callbacks=[BetweenSteps(between)], **fit)
    return model, seen, traces.count


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_it_counts_from_the_next_step_on_and_changes_nothing_else(jit_compile):
    plain, before, traces = trained({}, jit_compile)
    scales = {3: 2.0**12, 5: 2.0**5, 6: 2.0**40}
    model, seen, traces_too = trained(scales, jit_compile)
    assert before == [2.0**10, 2.0**10, *[2.0**9] * 6]
    assert seen == [2.0**10, 2.0**10, 2.0**9, 2.0**9, 2.0**12, 2.0**12, 2.0**5, 2.0**16]
    assert bits(model.variables) == bits(plain.variables)
    assert bits(model.optimizer.inner_optimizer.variables) == bits(
        plain.optimizer.inner_optimizer.variables
    )
    for name in STATE:
        assert bits([getattr(model.optimizer, name)]) == bits([getattr(plain.optimizer, name)])
    assert traces == traces_too


@pytest.mark.backend("tensorflow", "jax")
def test_several_steps_an_execution():
    plain, _, traces = trained({}, steps_per_execution=2)
    model, seen, traces_too = trained({4: 2.0**12}, steps_per_execution=2)
    assert seen == [2.0**10, 2.0**9, 2.0**9, 2.0**12]
    assert bits(model.variables) == bits(plain.variables)
    assert traces == traces_too


def test_outside_of_fit_and_before_the_first_step():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(LossScaleOptimizer("sgd", min_scale=0.25), "mse")
    model.optimizer.build(model.trainable_variables)
    x = np.ones((4, 4), "float32")
    assert set_loss_scale(model, 3) == 3.0
    model.train_on_batch(x, x[:, :1])
    assert float(current(model, model.optimizer.dynamic_scale)) == 3.0
    assert set_loss_scale(model, 1e-300) == 0.25
    assert set_loss_scale(model, np.float64(1e300)) == 2.0**24
    model.fit(x, x[:, :1], verbose=0)
    assert float(current(model, model.optimizer.dynamic_scale)) == 2.0**24


def test_what_is_no_scale_or_has_none_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(LossScaleOptimizer("sgd"), "mse")
    with pytest.raises(PrecisionError, match="built optimizer"):
        set_loss_scale(model, 2.0)
    model.optimizer.build(model.trainable_variables)
    for scale in (0.0, -1.0, math.inf, math.nan, True):
        with pytest.raises(ConfigError, match="positive and finite"):
            set_loss_scale(model, scale)
    assert float(current(model, model.optimizer.dynamic_scale)) == 2.0**15
    for optimizer in ("sgd", LossScaleOptimizer("sgd", initial_scale=None)):
        model.compile(optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
        with pytest.raises(PrecisionError, match="scales the loss"):
            set_loss_scale(model, 2.0)


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
def test_on_all_replicas():
    script = Path(__file__).with_name("loss_scale_replicas_tensorflow.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"scales": [64.0, 64.0], "skipped": 0}


def telemetry(largest, scale=2.0**15, layer="stem", **more):
    layers = {layer: {"kernel": GradientStatistics(elements=4, largest=largest)}}
    return Telemetry(step=10, steps=5, scale=scale, layers=layers, **more)


def scaling(on=True, **bounds):
    return PredictiveScaling(DynamicConfig(predictive_scale=on), ScaleRules(**bounds))


def fit_with_growing_gradients(predictive, start, random):
    """A layer in float16 under a loss whose gradients grow by a factor of 2 ** (1 / 8) a step."""
    steps = 120
    dense = keras.layers.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((4,)), dense])
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.0))
    watch = optimizer.watch_gradients(4, 1)
    model.compile(optimizer, lambda y_true, y_pred: keras.ops.sum(y_pred * y_true, axis=-1))
    rule = PredictiveScaling(DynamicConfig(predictive_scale=predictive), optimizer.scale_rules)
    number, scales = 0, []

    def between(step):
        nonlocal number
        window = watch.last_window(lambda v: current(model, v)) if step else None
        if window is None or window.number == number:
            return
        number = window.number
        scale = float(current(model, optimizer.dynamic_scale))
        layers = {"dense": dict(zip("kb", window.variables, strict=True))}
        read = Telemetry(step=step, steps=4, scale=scale, layers=layers)
        proposed = rule.observe(read)
        scales.append(scale)
        if proposed is not None:
            set_loss_scale(model, proposed)

    factors = start * 2.0 ** (np.arange(steps) / 8)
    y = random.uniform(0.5, 1.0, size=(steps, 4, 3)) * factors[:, None, None]
    x = random.uniform(0.5, 1.0, size=(steps, 4, 4))
    arrays = [array.reshape(-1, array.shape[-1]).astype("float32") for array in (x, y)]
    model.fit(*arrays, batch_size=4, verbose=0, shuffle=False, callbacks=[BetweenSteps(between)])
    return int(current(model, optimizer.skipped_steps)), scales


def test_it_backs_off_before_gradients_that_grow_overflow():
    random = np.random.default_rng()
    ordinary, _ = fit_with_growing_gradients(False, 2.0**-8, random)
    predictive, scales = fit_with_growing_gradients(True, 2.0**-8, random)
    assert ordinary >= 4  # one skip each time that the gradients have doubled
    assert predictive == 0
    assert scales[-1] < scales[0]


def test_nothing_is_proposed_without_being_asked_or_without_a_scale():
    off = scaling(on=False)
    assert [off.observe(telemetry(1.0)) for _ in range(30)] == [None] * 30
    on = scaling()
    assert [on.observe(telemetry(1.0, scale=None)) for _ in range(30)] == [None] * 30
    assert on.get_state() == scaling().get_state()


def test_a_scale_that_is_set_already_is_not_proposed_again():
    rule = scaling(max_scale=2.0**10)
    found = [rule.observe(telemetry(1.0)) for _ in range(12)]
    assert found == [None] * 9 + [2.0**10] * 3
    assert rule.observe(telemetry(1.0, scale=2.0**10)) is None


def test_an_overflow_for_its_scale_is_a_look_at_a_large_gradient():
    def proposed(*overflows, layers=None):
        rule = scaling()
        for _ in range(12):
            rule.observe(telemetry(1.0), layers)
        return rule.observe(telemetry(1.0, overflows=overflows), layers)

    calm = proposed()
    overflow = Overflow(step=3, cause="loss_scale", layer="stem", scale=2.0**10)
    assert calm is None  # 2 ** 15, which is set
    assert proposed(overflow) < 2.0**15
    assert proposed(overflow, layers=["stem"]) < 2.0**15
    for harmless in (
        Overflow(step=3, cause="data", scale=2.0**10),
        Overflow(step=3, cause="activation", layer="stem", scale=2.0**10),
    ):
        assert proposed(harmless) is None
    promoted = Overflow(step=3, cause="loss_scale", layer="head", scale=2.0**10)
    assert proposed(promoted, layers=["stem"]) is None


def test_layers_that_cannot_overflow_do_not_count():
    rule = scaling()
    for _ in range(20):
        found = rule.observe(telemetry(2.0**20, layer="promoted"), layers=["stem"])
    assert found is None


def test_its_state_goes_on_through_json():
    random = np.random.default_rng()
    looks = np.exp(random.normal(size=40))
    whole, first, second = scaling(), scaling(), scaling()
    expected = [whole.observe(telemetry(float(look))) for look in looks]
    for look in looks[:17]:
        first.observe(telemetry(float(look)))
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert [second.observe(telemetry(float(look))) for look in looks[17:]] == expected[17:]
    assert second.get_state() == whole.get_state()


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"mean": 0.0, "variance": 1.0},
        {"mean": math.nan, "variance": 0.0, "count": 1},
        {"mean": 0.0, "variance": -1.0, "count": 1},
        {"mean": "x", "variance": 0.0, "count": 1},
        {"mean": [], "variance": 0.0, "count": 1},
    ],
)
def test_a_foreign_state_is_refused_and_nothing_is_taken_from_it(state):
    rule = scaling()
    rule.observe(telemetry(3.0))
    before = rule.get_state()
    with pytest.raises(ConfigError, match="predictive loss scale"):
        rule.set_state(state)
    assert rule.get_state() == before
