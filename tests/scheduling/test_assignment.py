"""The exact assignment against all assignments there are."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.assignment import assign
from deepseek_hpf.scheduling.cost_model import Cost, CostModel, Edge

pytestmark = pytest.mark.pure

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
SECONDS = st.one_of(st.just(0.0), st.floats(1e-6, 1e-1))
RISKS = st.one_of(st.just(0.0), st.just(math.inf), st.floats(1e-8, 1.0))


@st.composite
def cost_models(draw, policies=POLICIES):
    paths = [f"layer_{i}" for i in range(draw(st.integers(1, 6)))]
    layers = {}
    for path in paths:
        options = {"float32": Cost(draw(SECONDS))}
        for policy in policies[1:]:
            if draw(st.integers(0, 9)):
                options[policy] = Cost(draw(SECONDS), draw(RISKS))
        layers[path] = options
    pairs = list(itertools.product(policies, repeat=2))
    edges = draw(
        st.lists(
            st.builds(
                Edge,
                st.sampled_from(paths),
                st.sampled_from(paths),
                st.dictionaries(st.sampled_from(pairs), SECONDS),
            ),
            max_size=8,
        )
    )
    groups = draw(st.lists(st.lists(st.sampled_from(paths), max_size=3).map(tuple), max_size=2))
    return CostModel(layers, tuple(edges), tuple(groups))


def all_assignments(model):
    paths = list(model.layers)
    for choice in itertools.product(*(model.layers[path] for path in paths)):
        policies = dict(zip(paths, choice, strict=True))
        if all(len({policies[path] for path in group}) <= 1 for group in model.groups):
            yield policies


def least_seconds(model, budget):
    within = [p for p in all_assignments(model) if model.risk(p) <= budget]
    return min((model.seconds(p) for p in within if math.isfinite(model.risk(p))), default=None)


def assert_is_the_best(model, budget):
    found = assign(model, risk_budget=budget)
    assert found.is_optimal
    assert found.policies in list(all_assignments(model))
    assert found.seconds == model.seconds(found.policies)
    assert found.risk == model.risk(found.policies) <= budget * (1 + 1e-6)
    strict = least_seconds(model, budget * (1 - 1e-6))
    assert strict is None or found.seconds <= strict + 1e-9
    assert found.seconds >= least_seconds(model, budget * (1 + 1e-6)) - 1e-9


@settings(deadline=None, max_examples=150)
@given(cost_models(), st.one_of(st.just(0.0), st.floats(1e-7, 4.0), st.just(math.inf)))
def test_no_assignment_is_faster_within_the_budget(model, budget):
    assert_is_the_best(model, budget)


@settings(deadline=None, max_examples=50)
@given(cost_models(POLICIES[:2]))
def test_two_policies_without_a_budget_are_a_minimum_cut(model):
    assert_is_the_best(model, math.inf)


def chain(rng, length, edges=()):
    """Layers one after the other, some of them slower in low precision, with casts between."""
    layers = {
        f"layer_{i}": {
            "float32": Cost(rng.random()),
            "mixed_bfloat16": Cost(rng.random(), rng.random() * 1e-3),
        }
        for i in range(length)
    }
    following = [(i, i + 1) for i in range(length - 1)]
    casts = [
        Edge(f"layer_{i}", f"layer_{j}", {POLICIES[:2]: cost, POLICIES[1::-1]: cost})
        for i, j in [*following, *edges]
        for cost in [rng.random() * 0.3]
    ]
    return CostModel(layers, tuple(casts))


def test_a_thousand_layers_take_bounded_time():
    rng = np.random.default_rng()
    skips = [(int(i), int(i) + 5) for i in rng.choice(990, 300, replace=False)]
    model = chain(rng, 1000, skips)
    began = time.monotonic()
    free = assign(model)
    bound = assign(model, risk_budget=free.risk / 3, time_limit=5.0)
    assert time.monotonic() - began < 60
    assert free.is_optimal
    full = model.seconds(dict.fromkeys(model.layers, "float32"))
    assert free.seconds < bound.seconds < full
    assert bound.risk <= free.risk / 3 * (1 + 1e-6)


def test_the_same_input_gives_the_same_assignment():
    layer = {"float32": Cost(1.0), "mixed_bfloat16": Cost(1.0, 0.1), "mixed_float16": Cost(1.0)}
    model = CostModel({f"layer_{i}": layer for i in range(20)})
    assert assign(model) == assign(model)


@pytest.mark.parametrize("budget", [math.inf, 0.25, 0.0])
def test_too_little_time_gives_what_is_within_the_budget_and_says_so(monkeypatch, budget):
    model = CostModel(
        {
            "a": {"float32": Cost(2.0), "mixed_bfloat16": Cost(1.0, 0.2)},
            "b": {"float32": Cost(2.0), "mixed_bfloat16": Cost(1.0, 0.2)},
            "c": {"float32": Cost(1.0)},
        }
    )
    out_of_time = optimize.OptimizeResult(x=None, status=1)
    monkeypatch.setattr(optimize, "milp", lambda *a, **k: out_of_time)
    found = assign(model, risk_budget=budget)
    assert not found.is_optimal
    assert found.risk <= budget
    assert found.seconds == (3.0 if budget == math.inf else 5.0)


def test_no_layers_at_all():
    assert assign(CostModel({})).policies == {}


def test_what_cannot_be_is_told():
    risky = CostModel({"a": {"mixed_bfloat16": Cost(1.0, 0.5)}})
    with pytest.raises(ConfigError, match=r"at least 0\.5"):
        assign(risky, risk_budget=0.1)
    with pytest.raises(ConfigError, match="finite"):
        assign(CostModel({"a": {"mixed_float16": Cost(1.0, math.inf)}}))
    apart = {"a": {"float32": Cost(1.0)}, "b": {"mixed_float16": Cost(1.0)}}
    with pytest.raises(ConfigError, match="a, b"):
        assign(CostModel(apart, groups=(("a", "b"),)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": {"a": {}}},
        {"layers": {"a": {"float32": Cost(-1.0)}}},
        {"layers": {"a": {"float32": Cost(math.nan)}}},
        {"layers": {"a": {"float32": Cost(math.inf)}}},
        {"layers": {"a": {"float32": Cost(1.0, -0.1)}}},
        {"layers": {"a": {"float32": Cost(1.0, math.nan)}}},
        {"layers": {}, "edges": (Edge("a", "b", {}),)},
        {"layers": {"a": {"float32": Cost(1.0)}}, "groups": (("a", "b"),)},
        {
            "layers": {"a": {"float32": Cost(1.0)}},
            "edges": (Edge("a", "a", {("float32", "float32"): -1.0}),),
        },
    ],
)
def test_a_model_that_is_none_is_refused(arguments):
    with pytest.raises(ConfigError, match="expected"):
        CostModel(**arguments)
