"""Running log-normal statistics, and the loss scale that follows them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_hpf.scheduling.log_normal import LogNormal
from deepseek_hpf.scheduling.predictive_scale import PredictiveScale

pytestmark = pytest.mark.pure


def seen_all(figures, **options):
    seen = LogNormal()
    for figure in figures:
        seen = seen.after(figure, **options)
    return seen


def test_at_first_they_are_those_of_all_figures():
    figures = np.random.default_rng().lognormal(3.0, 2.0, size=100)
    seen = seen_all(figures)
    assert seen.count == 100
    assert seen.mean == pytest.approx(np.log(figures).mean(), rel=1e-9)
    assert seen.variance == pytest.approx(np.log(figures).var(), rel=1e-9)


def test_later_ones_fade():
    seen = seen_all([1.0] * 1000 + [math.e] * 1000)
    assert seen.mean == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("figure", [0.0, -1.0, math.inf, math.nan])
def test_what_has_no_logarithm_is_left_out(figure):
    seen = LogNormal().after(2.0)
    assert seen.after(figure) == seen
    assert LogNormal().after(figure).count == 0


def test_an_outlier_counts_only_up_to_the_margin():
    seen = seen_all([1.0] * 9, margin=1.0).after(1e30, margin=1.0)
    assert seen.mean == pytest.approx(0.1)
    assert LogNormal().after(1e30, margin=1.0).mean == math.log(1e30)  # the first is taken as it is


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_statistics_stay_finite(figures):
    seen = seen_all(figures)
    assert math.isfinite(seen.mean)
    assert 0.0 <= seen.variance < math.inf
    assert math.isfinite(seen.quantile(100.0))


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 65504.0), ("bfloat16", 3.38e38)])
def test_the_proposed_scale_is_the_largest_power_of_two_that_keeps_the_quantile(dtype, limit):
    rule = PredictiveScale(dtype=dtype, max_scale=2.0**126, min_scale=2.0**-126)
    seen = LogNormal()
    for largest in np.random.default_rng().lognormal(0.0, 1.0, size=50):
        seen = rule.observe(seen, float(largest), scale=1.0)
    scale = rule.propose(seen)
    assert math.frexp(scale)[0] == 0.5
    assert (
        scale * seen.quantile(rule.z)
        <= limit * (1 + 1e-9)
        < 2 * scale * seen.quantile(rule.z) * (1 + 1e-6)
    )


def test_it_backs_off_before_the_overflow():
    """Gradients that double every 100 looks leave float16 as rarely as the rule says."""
    rule, seen, scale = PredictiveScale(min_scale=2.0**-20), LogNormal(), None
    random, overflows = np.random.default_rng(3), 0
    for look in range(2000):
        largest = 2.0 ** (look / 100) * float(random.lognormal(0.0, 0.2))
        scale = rule.propose(seen) or 1.0
        overflows += largest * scale > 65504.0
        seen = rule.observe(seen, largest, scale)
    assert overflows <= 4  # of 2000
    assert scale * largest > 65504.0 / 64  # and the range is not left unused


@given(
    st.lists(
        st.sampled_from([0.0, 1e-320, 1e-45, 1.0, 1e38, 1e308, math.inf, math.nan]), max_size=40
    )
)
def test_the_scale_stays_within_its_bounds(figures):
    rule, seen = PredictiveScale(warmup=1, min_scale=0.5, max_scale=2.0**24), LogNormal()
    for largest in figures:
        seen = rule.observe(seen, largest, scale=rule.propose(seen) or 1024.0)
        proposed = rule.propose(seen)
        assert proposed is None or 0.5 <= proposed <= 2.0**24


def test_nothing_is_proposed_before_the_warm_up():
    rule = PredictiveScale(warmup=2)
    seen = rule.observe(LogNormal(), 1.0, 1.0)
    assert rule.propose(seen) is None
    assert rule.propose(rule.observe(seen, 0.0, 1.0)) is None
    assert rule.propose(rule.observe(seen, math.inf, 1.0)) is not None
