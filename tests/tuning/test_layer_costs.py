"""What a layer costs and risks in each precision: recorded, measured, and made a problem of."""

import math
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.cost_model import Cost
from deepseek_hpf.tuning.candidates import blanket
from deepseek_hpf.tuning.layer_costs import LayerCosts, risk_of
from deepseek_hpf.tuning.layer_measuring import measure
from deepseek_hpf.tuning.recorded_calls import OutOfTimeError, Recording, record, units
from deepseek_hpf.tuning.trial import trial

RNG = np.random.default_rng()
FULL, LOW = "float32", "mixed_bfloat16"
CONFIGS = {policy: blanket(policy, kernels=True).config for policy in (FULL, LOW)}


class Unsteady(keras.layers.Layer):
    """Loses in low precision nearly all that it was given."""

    def call(self, x):
        return (x + 1000.0) - 1000.0


class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.LayerNormalization(name="norm")
        self.inner = keras.layers.Dense(6, name="inner")

    def build(self, shape):
        self.norm.build(shape)
        self.inner.build(shape)

    def call(self, x):
        return x + self.inner(self.norm(x))


def model_of_all_sorts():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 6, name="embedding")(inputs)
    x = keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = Block(name="block")(x)
    shared = keras.layers.Dense(6, name="shared")
    x = shared(shared(x))
    x = keras.layers.GlobalAveragePooling1D(name="pool")(x * 2.0)
    x = Unsteady(name="unsteady")(x)
    return compiled(keras.Model(inputs, keras.layers.Dense(3, name="head")(x)))


def dense_model():
    layers = [keras.layers.Dense(6, name=name) for name in ("a", "b", "c")]
    middle = Unsteady(name="unsteady")
    return compiled(keras.Sequential([keras.Input((6,)), *layers[:2], middle, layers[2]]))


def compiled(model):
    model.compile("sgd", "mse")
    return model


def indices():
    return keras.ops.convert_to_tensor(RNG.integers(0, 9, (4, 5)).astype("int32"))


def calls_on_instances(model):
    return [path for path in units(model) if "call" in vars(path.layer)]


def test_a_recording_knows_what_came_from_where():
    model = model_of_all_sorts()
    recording = record(model, indices())
    assert [walked.path for walked in units(model)] == [
        *("embedding", "attention", "block/norm", "block/inner", "shared"),
        *("pool", "unsteady", "head"),
    ]
    flow = [(producer, consumer) for producer, consumer, _ in recording.edges]
    assert flow == [
        ("embedding", "attention"),
        ("embedding", "attention"),
        ("attention", "block/norm"),
        ("block/norm", "block/inner"),
        ("block/inner", "shared"),
        ("shared", "pool"),
        ("pool", "unsteady"),
        ("unsteady", "head"),
    ]
    assert {elements for *_, elements in recording.edges} == {4 * 5 * 6, 4 * 6}
    assert len(recording.kinds["shared"]) == 2
    assert len(set(recording.kinds["shared"])) == 1
    # Of one class, configuration and shape: but the one is given another shape.
    assert recording.kinds["shared"][0] == recording.kinds["block/inner"][0]
    assert calls_on_instances(model) == []


def test_recording_gives_up_in_time_and_leaves_nothing():
    model = dense_model()
    with pytest.raises(OutOfTimeError, match="too long"):
        record(model, keras.ops.ones((2, 6)), time.monotonic() - 1.0)
    assert calls_on_instances(model) == []


def test_what_is_measured():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(9, 6, name="embedding")(inputs)
    x = keras.layers.Dropout(0.2, name="dropout")(Block(name="block")(x))
    x = Unsteady(name="unsteady")(x)
    model = compiled(keras.Model(inputs, keras.layers.Dense(3, name="head")(x)))
    data = (indices(), RNG.random((4, 5, 3), "float32"))
    with trial(model, data) as made:
        recording = record(model, data[0])
        costs = measure(made, recording, CONFIGS, time.monotonic() + 300)
    problem = costs.cost_model(LOW)
    assert costs.share_measured() == 1.0
    assert list(problem.layers.pop("head")) == [FULL]
    risks = {path: options[LOW].risk for path, options in problem.layers.items()}
    assert all(options[FULL].risk == 0.0 for options in problem.layers.values())
    assert all(options[FULL].seconds > 0.0 for options in problem.layers.values())
    assert all(0.0 < risk < math.inf for risk in risks.values())
    assert risks.pop("unsteady") > 100 * max(risks.values())
    assert problem.edges[0].casts.keys() == {(FULL, LOW), (LOW, FULL)}


def test_time_that_runs_out_leaves_the_layers_their_policy():
    model = dense_model()
    data = (RNG.random((2, 6)), RNG.random((2, 6)))
    with trial(model, data) as made:
        recording = record(model, made.batch[0])
        with pytest.raises(OutOfTimeError, match="casts"):
            measure(made, recording, CONFIGS, time.monotonic() - 1.0)
    plans = {
        policy: PrecisionPlan({path: LayerPlan(policy=policy) for path in recording.kinds})
        for policy in CONFIGS
    }
    nothing = LayerCosts(recording, plans)
    assert nothing.share_measured() == 0.0
    assert {tuple(o) for o in nothing.cost_model(LOW).layers.values()} == {(LOW,)}


def test_a_layer_that_cannot_be_called_on_its_own_is_left_out():
    class Once(keras.layers.Layer):
        calls = 0

        def call(self, x):
            Once.calls += 1
            if Once.calls > allowed:
                raise RuntimeError("made up")
            return x * 1.0

    allowed = math.inf
    layers = [keras.layers.Dense(6, name="a"), Once(name="once"), keras.layers.Dense(6, name="b")]
    model = compiled(keras.Sequential([keras.Input((6,)), *layers]))
    data = (RNG.random((2, 6)), RNG.random((2, 6)))
    with trial(model, data) as made:
        recording = record(model, made.batch[0])
        allowed = 0
        problem = measure(made, recording, CONFIGS, time.monotonic() + 300).cost_model(LOW)
    assert list(problem.layers["once"]) == [LOW]
    assert list(problem.layers["a"]) == [FULL, LOW]


def costs_of(**seconds):
    """Layers with made-up times in float32 and in low precision."""
    recording = Recording(
        samples={path: SimpleNamespace(path=path, elements=1) for path in seconds},
        kinds={path: [path] for path in seconds},
        edges=[("a", "b", 10)],
    )
    plans = {p: PrecisionPlan({path: LayerPlan(policy=p) for path in seconds}) for p in CONFIGS}
    calls = {
        (policy, path): Cost(times[place], 0.1 * place)
        for path, times in seconds.items()
        for place, policy in enumerate(CONFIGS)
    }
    return LayerCosts(recording, plans, calls, {(FULL, LOW): (0.5, 0.25)})


def test_a_difference_within_the_noise_is_none():
    problem = costs_of(a=(1.0, 1.04), b=(1.0, 0.5)).cost_model(LOW)
    assert problem.layers["a"][LOW].seconds == 1.0 < problem.layers["a"][FULL].seconds
    assert problem.layers["b"][LOW] == Cost(0.5, 0.1)
    assert problem.edges[0].casts == {(FULL, LOW): 3.0}


def nothing_but(*values):
    return [np.array(values, "float32")], []


@pytest.mark.parametrize(
    ("ours", "exact", "risk"),
    [
        ((1.0, 2.0), (1.0, 2.0), 0.0),
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((0.0, 1e-30), (0.0, 0.0), 1.0),
        ((0.0, 1.0), (1e-40, 1.0), 0.25),
        ((np.inf, 1.0), (1e30, 1.0), math.inf),
        ((np.nan, 1.0), (1.0, 1.0), math.inf),
        ((np.inf, 1.0), (np.inf, 1.0), 0.0),
        ((1.0,), (-1.0,), 4.0),
        ((), (), 0.0),
    ],
)
def test_risk(ours, exact, risk):
    assert risk_of(nothing_but(*ours), nothing_but(*exact)) == pytest.approx(risk)


def test_the_risk_of_results_and_gradients_adds_up():
    exact = [RNG.normal(size=50)], [RNG.normal(size=40), None, RNG.normal(size=1)]
    ours = [exact[0][0] * 1.01], [exact[1][0] * 0.98, None, exact[1][2] * 0.98]
    assert risk_of(ours, exact) == pytest.approx(0.01**2 + 0.02**2)
    assert risk_of(([None], []), ([None], [])) == 0.0
