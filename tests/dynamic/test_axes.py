"""Axes hold their values, and have a few numbers that are told apart."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_hpf.dynamic.axes import axis_for, step_axis, step_label, value_label

pytestmark = pytest.mark.pure
numbers = st.floats() | st.floats(1e-12, 1e12) | st.none()


@given(st.lists(numbers, max_size=5), st.sampled_from(["linear", "log2", "log10"]))
def test_an_axis_holds_its_values_and_a_few_numbers(values, kind):
    axis = axis_for(values, kind)
    assert 2 <= len(axis.ticks) <= 7
    assert all(-1e-6 <= tick.at <= 1 + 1e-6 for tick in axis.ticks)
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)
    places = [axis.at(value) for value in values]
    assert all(place is None or 0 <= place <= 1 for place in places)
    for value, place in zip(values, places, strict=True):
        has_none = value is None or not abs(value) < 1e300 or (kind != "linear" and value <= 0)
        assert (place is None) == has_none


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_steps_are_whole_numbers(first, more):
    axis = step_axis(first, first + more)
    assert 1 <= len(axis.ticks) <= 7
    assert all(0 <= tick.at <= 1 for tick in axis.ticks)
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_the_higher_value_stands_higher(value, more):
    axis = axis_for([value, value + more], "linear")
    assert axis.at(value) < axis.at(value + more)


@pytest.mark.parametrize(
    ("values", "kind", "labels"),
    [
        ([0.8, 4.8], "linear", ["1", "2", "3", "4", "5"]),
        ([1000.0001, 1000.0002], "linear", ["1000.0001", "1000.00015", "1000.0002"]),
        ([2.0**-3, 2.0**60], "log2", ["2⁰", "2²⁰", "2⁴⁰", "2⁶⁰"]),
        ([1e-8, 1e4], "log10", ["10⁻⁵", "10⁰"]),
        ([3.0, 3.1], "log10", ["3.00", "3.05", "3.10"]),
        ([math.nan], "linear", ["0.0", "0.5", "1.0"]),
    ],
)
def test_numbers_are_round(values, kind, labels):
    assert [tick.label for tick in axis_for(values, kind).ticks] == labels


@pytest.mark.parametrize(
    ("step", "label"),
    [(0, "0"), (9_999, "9,999"), (10_000, "10k"), (10_050, "10,050"), (2_500_000, "2.5M")],
)
def test_round_steps_are_short(step, label):
    assert step_label(step) == label


@pytest.mark.parametrize(
    ("value", "kind", "label"),
    [
        (None, "linear", "unknown"),
        (math.nan, "linear", "NaN"),
        (-math.inf, "log2", "-inf"),
        (1024.0, "log2", "2¹⁰"),
        (1024.0, "linear", "1024"),
        (0.0, "log2", "0"),
        (1000.0, "log2", "1000"),
        (2.0**-24, "log2", "2⁻²⁴"),
    ],
)
def test_values_in_words(value, kind, label):
    assert value_label(value, kind) == label
