"""Profiling leaves the model as it was, takes any model, and refuses what it cannot take."""

import keras
import numpy as np
import pytest

from deepseek_hpf import ConfigError, apply_policy, profile

L = keras.layers
# JAX compiles every operation of every model.
pytestmark = [pytest.mark.slow] if keras.backend.backend() == "jax" else []


def rows(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def some_model():
    inputs = keras.Input((5, 6))
    shared = L.Dense(6, name="shared")
    tensor = L.Dropout(0.5)(shared(shared(inputs)))
    tensor = L.BatchNormalization(name="bn")(tensor)
    tensor = L.LSTM(4, stateful=False, name="rnn")(tensor)
    tensor = keras.ops.tanh(tensor)
    inner = keras.Sequential([keras.Input((4,)), L.Dense(4, name="in")], name="inner")
    model = keras.Model(inputs, L.Dense(2, name="head")(inner(tensor)))
    model.compile("adam", "mse", metrics=["mae"])
    return model, (rows(4, 5, 6), rows(4, 2))


def state(model):
    layers = model._flatten_layers()
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    seeds = [g.state for layer in layers for g in layer._seed_generators]
    return [np.array(keras.ops.convert_to_numpy(v)) for v in [*variables, *seeds]]


def hooks(model):
    held = [vars(layer).get("call") for layer in model._flatten_layers()]
    return held, [id(layer._dtype_policy) for layer in model._flatten_layers()]


def test_nothing_is_changed():
    model, batch = some_model()
    model.train_on_batch(*batch)
    before, hooked, function = state(model), hooks(model), model.train_function
    drawn = np.random.get_state()[1].copy()
    report = profile(model, batch, steps=2, census=False)
    assert {"shared", "bn", "rnn", "inner/in", "head"} <= {row.path for row in report.layers}
    assert next(row for row in report.layers if row.path == "shared").calls == 2
    assert all(np.array_equal(a, b) for a, b in zip(before, state(model), strict=True))
    assert hooks(model) == hooked
    assert model.train_function is function
    assert np.array_equal(drawn, np.random.get_state()[1])


@pytest.mark.parametrize("recurrent", [L.LSTM, L.GRU, L.SimpleRNN])
def test_what_a_stateful_rnn_carries_is_kept(recurrent):
    inputs = keras.Input((5, 3), batch_size=4)
    layer = recurrent(4, stateful=True, name="rnn")
    model = keras.Model(inputs, L.Dense(2)(layer(inputs)))
    model.compile("adam", "mse")
    batch = rows(4, 5, 3), rows(4, 2)
    for index, value in enumerate(keras.tree.flatten(layer.states)):
        value.assign(np.random.default_rng(index).standard_normal((4, 4)))
    carried = [np.array(keras.ops.convert_to_numpy(v)) for v in keras.tree.flatten(layer.states)]
    before = state(model)
    report = profile(model, batch, steps=2)
    assert report.ranges_of("rnn")
    # Keras trains no stateful LSTM or GRU under PyTorch: it writes their states in place.
    if keras.backend.backend() != "torch" or recurrent is L.SimpleRNN:
        assert report.census.operations
    after = [keras.ops.convert_to_numpy(v) for v in keras.tree.flatten(layer.states)]
    assert all(np.array_equal(a, b) for a, b in zip(carried, after, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(before, state(model), strict=True))


class Fails(L.Layer):
    error: BaseException | None = None

    def call(self, x):
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_fault_in_the_middle_leaves_no_hook(error):
    layer = Fails(name="fails")
    model = keras.Sequential([keras.Input((3,)), L.Dropout(0.5), L.Dense(2), layer])
    model.compile("sgd", "mse")
    before, hooked = state(model), hooks(model)
    layer.error = error
    with pytest.raises((ConfigError, type(error))):
        profile(model, (rows(2, 3), rows(2, 2)), census=False)
    layer.error = None
    assert hooks(model) == hooked
    assert all(np.array_equal(a, b) for a, b in zip(before, state(model), strict=True))


def test_a_model_with_a_policy_applied_keeps_it_and_has_no_conflict():
    model, batch = some_model()
    apply_policy(model, "mixed_bfloat16")
    hooked = hooks(model)
    report = profile(model, batch, census=False)
    assert [c for c in report.conflicts if c.severity == "error"] == []
    assert hooks(model) == hooked


def test_names_with_odd_characters():
    odd = L.Dense(2, dtype="mixed_bfloat16", name="a*[b]? c")
    model = keras.Sequential([keras.Input((3,)), odd])
    model.compile("sgd", "mse")
    batch = rows(2, 3), rows(2, 2)
    (conflict,) = profile(model, batch, census=False).conflicts
    (rule,) = conflict.rules
    assert rule["layers"] == "a[*][[]b][?] c"
    from deepseek_hpf import PrecisionConfig

    apply_policy(model, PrecisionConfig(policy="mixed_bfloat16", rules=[dict(rule)]))
    assert profile(model, batch, census=False).conflicts == ()


@pytest.mark.slow
def test_a_thousand_layers():
    inputs = keras.Input((3,))
    tensors = []
    for _ in range(5):  # Keras itself recurses along a chain
        tensor = inputs
        for _ in range(200):
            tensor = L.Activation("tanh")(tensor)
        tensors.append(tensor)
    report = profile(keras.Model(inputs, L.Add()(tensors)), (rows(2, 3),), census=False)
    assert len(report.layers) == 1001


def test_plain_mixed_float16_has_a_float16_output():
    with_policy = keras.DTypePolicy("mixed_float16")
    layers = [L.Dense(4, dtype=with_policy), L.Dense(2, dtype=with_policy, name="head")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "mse")
    conflicts = profile(model, (rows(2, 3), rows(2, 2)), census=False).conflicts
    assert [(c.kind, c.path) for c in conflicts] == [("low_output", "head")]


def test_a_model_that_is_not_built_stays_so():
    model = keras.Sequential([L.Dense(3, name="d"), L.Dense(2, name="e")])
    model.compile("sgd", "mse")
    report = profile(model, (rows(2, 3), rows(2, 2)), census=False)
    assert not model.built
    assert report.ranges_of("d", "weight_gradient")
    assert "not built" in report.notes[0]


class NoLayers(keras.Model):
    def call(self, x):
        return keras.ops.tanh(x)


def test_a_model_without_layers_is_run():
    model = NoLayers()
    model(rows(2, 3))
    assert profile(model, (rows(2, 3),), census=False).layers == ()


class NeedsArgument(keras.Model):
    def __init__(self, width):
        super().__init__()
        self.dense = L.Dense(width)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (lambda: some_model()[0], None, "batch"),
        (lambda: some_model()[0], (), "batch"),
        (lambda: some_model()[0], (None, None), "batch"),
        (lambda: some_model()[0], (rows(4, 7, 9), rows(4, 2)), "batch that the model can train on"),
        (lambda: some_model()[0], (rows(4, 5, 6), rows(3, 2)), "batch that the model can train on"),
        (lambda: NeedsArgument(2), (rows(2, 3), rows(2, 2)), "Call it on a batch"),
        (lambda: "model.keras", (rows(2, 3), rows(2, 2)), "load_model"),
    ],
    ids=["none", "empty", "nothing", "shape", "labels", "unbuilt", "file"],
)
def test_bad_input_is_one_clear_error(model, batch, message):
    with pytest.raises(ConfigError, match=message):
        profile(model(), batch, census=False)


def test_steps_have_to_be_positive():
    model, batch = some_model()
    with pytest.raises(ConfigError, match="steps"):
        profile(model, batch, steps=0)
