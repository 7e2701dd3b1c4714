"""The exact storages against all storages there are."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.storage_assignment import PRICE, StorageOption, assign_storages

pytestmark = pytest.mark.pure

STORAGES = (None, "sparse", "int8", "int4")
ERRORS = st.one_of(st.just(0.0), st.just(math.inf), st.floats(1e-6, 1.0))


@st.composite
def problems(draw):
    things = [f"thing_{i}" for i in range(draw(st.integers(1, 7)))]
    sizes = {thing: draw(st.integers(0, 10**6)) for thing in things}
    keeps = st.frozensets(st.sampled_from(things), max_size=3)
    layers = {}
    for i in range(draw(st.integers(1, 5))):
        options = {None: StorageOption(0.0, draw(keeps))}
        for storage in STORAGES[1:]:
            if draw(st.booleans()):
                options[storage] = StorageOption(draw(ERRORS), draw(keeps))
        layers[f"layer_{i}"] = options
    return layers, sizes


def every(layers, sizes):
    """`(storages, cost, bytes)` of all choices."""
    errors = [o.error for options in layers.values() for o in options.values()]
    largest = max(e for e in errors if math.isfinite(e))
    price = PRICE * largest or 1.0
    for choice in itertools.product(*(layers[layer] for layer in layers)):
        options = [layers[layer][s] for layer, s in zip(layers, choice, strict=True)]
        cost = sum(o.error for o in options) + price * sum(s is not None for s in choice)
        kept = frozenset().union(*(o.keeps for o in options))
        if math.isfinite(cost):
            yield choice, cost, sum(sizes[thing] for thing in kept), largest


@settings(deadline=None, max_examples=200)
@given(problems(), st.floats(0.01, 1.0))
def test_no_storages_have_a_smaller_error_within_the_goal(problem, goal):
    layers, sizes = problem
    choices = list(every(layers, sizes))
    whole = next(size for choice, _, size, _ in choices if set(choice) == {None})
    within = [cost for _, cost, size, _ in choices if size <= goal * whole]
    if not within:
        with pytest.raises(ConfigError, match="memory goal of at least"):
            assign_storages(layers, sizes, goal)
        return
    found = assign_storages(layers, sizes, goal)
    chosen = tuple(found.storages[layer] for layer in layers)
    ours = next(each for each in choices if each[0] == chosen)
    assert found.is_optimal
    assert found.all_bytes == whole
    assert found.kept_bytes == ours[2] <= goal * whole
    assert found.error == pytest.approx(sum(layers[p][s].error for p, s in found.storages.items()))
    assert ours[1] <= min(within) + 1e-8 * max(ours[3], 1.0)


@settings(deadline=None, max_examples=50)
@given(problems())
def test_the_goal_that_a_refusal_names_can_be_met(problem):
    layers, sizes = problem
    try:
        assign_storages(layers, sizes, 1e-9)
    except ConfigError as error:
        named = float(re.search(r"at least ([\d.]+)", str(error)).group(1))
        assert assign_storages(layers, sizes, named).kept_bytes >= 0


def test_nothing_is_packed_where_nothing_has_to_be():
    keeps = frozenset({"x"})
    options = {None: StorageOption(0.0, keeps), "sparse": StorageOption(0.0, frozenset({"bits"}))}
    found = assign_storages({"relu": options}, {"x": 32, "bits": 1}, 1.0)
    assert found.storages == {"relu": None}


def test_what_two_layers_keep_is_packed_for_both_or_for_none():
    def layer(error):
        return {
            None: StorageOption(0.0, frozenset({"x"})),
            "int8": StorageOption(error, frozenset({"x8"})),
        }

    def alone(error):
        return {
            None: StorageOption(0.0, frozenset({"y"})),
            "int8": StorageOption(error, frozenset({"y8"})),
        }

    sizes = {"x": 100, "x8": 25, "y": 100, "y8": 25}
    found = assign_storages(
        {"relu": layer(0.0), "conv": layer(0.2), "other": alone(0.3)}, sizes, 0.7
    )
    assert found.storages == {"relu": "int8", "conv": "int8", "other": None}
    assert found.kept_bytes == 125


def test_no_layers():
    assert assign_storages({}, {}, 0.5).storages == {}
