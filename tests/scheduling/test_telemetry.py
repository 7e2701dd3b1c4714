"""Telemetry as values: variables, layers and blocks taken together."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_hpf.scheduling.telemetry import GradientStatistics, Telemetry

pytestmark = pytest.mark.pure

counts = st.integers(1, 10**9)
sizes = st.floats(0.0, 1e300)
shares = st.floats(0.0, 1.0)
parts = st.builds(
    GradientStatistics,
    elements=counts,
    gradient_norm=sizes,
    largest=sizes,
    nonfinite=st.integers(0, 10**9),
    underflow=shares,
    update_norm=sizes,
    weight_norm=sizes,
    lost_updates=shares,
)


def test_two_variables_are_as_one_of_both():
    random = np.random.default_rng()
    first, second = random.normal(size=7), random.normal(size=3) * 1e-9

    def of(gradient):
        return GradientStatistics(
            elements=gradient.size,
            gradient_norm=float(np.linalg.norm(gradient)),
            largest=float(np.abs(gradient).max()),
            underflow=float((np.abs(gradient) < 1e-6).mean()),
        )

    together, whole = (
        GradientStatistics.combined([of(first), of(second)]),
        of(np.concatenate([first, second])),
    )
    for field in dataclasses.fields(whole):
        wanted = pytest.approx(getattr(whole, field.name), rel=1e-12)
        assert getattr(together, field.name) == wanted


@given(st.lists(parts, max_size=5))
def test_combining_keeps_bounds_and_does_not_depend_on_grouping(given_parts):
    whole = GradientStatistics.combined(given_parts)
    assert 0.0 <= whole.underflow <= 1.0 + 1e-9
    assert whole.largest == max((part.largest for part in given_parts), default=0.0)
    half = len(given_parts) // 2
    grouped = GradientStatistics.combined(
        GradientStatistics.combined(group) for group in (given_parts[:half], given_parts[half:])
    )
    for field in dataclasses.fields(whole):
        wanted = pytest.approx(getattr(whole, field.name), rel=1e-9, abs=1e-300)
        assert getattr(grouped, field.name) == wanted


def test_norms_beyond_the_square_root_of_the_largest_number():
    large = GradientStatistics(elements=1, gradient_norm=3e200)
    assert math.isfinite(GradientStatistics.combined([large, large]).gradient_norm)


def test_ratio_of_nothing_is_zero():
    assert GradientStatistics(elements=1, update_norm=1.0).update_ratio == 0.0
    assert GradientStatistics(elements=1, update_norm=1.0, weight_norm=4.0).update_ratio == 0.25


def test_layers_are_frozen_and_looked_up_by_path():
    own = {"kernel": GradientStatistics(elements=2, largest=1.0)}
    layers = {"a": own, "b": {"kernel": GradientStatistics(elements=5, largest=3.0)}}
    read = Telemetry(step=1, steps=1, layers=layers)
    layers.clear()
    own.clear()
    assert read.of(["a"]).elements == 2
    assert read.of(["a", "b", "none"]).largest == 3.0
    assert read.of([]) == GradientStatistics(elements=0)
    with pytest.raises(TypeError):
        read.layers["c"] = {}
