import math

import numpy as np
import pytest

from deepseek_hpf.tuning.numerical_error import StepValues

pytestmark = pytest.mark.pure
RNG = np.random.default_rng()


def test_errors_are_relative():
    gradients = [RNG.standard_normal((3, 2)), RNG.standard_normal(4)]
    exact = StepValues(4.0, (*gradients, None))
    moved = StepValues(3.0, (gradients[0] * 1.5, gradients[1] * 1.5, None))
    found = moved.deviation(exact)
    assert found.loss == pytest.approx(0.25)
    assert found.gradients == pytest.approx(0.5)
    assert found.is_finite


def test_the_same_values_have_no_error():
    exact = StepValues(0.0, (np.zeros(3), None, np.zeros((0, 2))))
    assert exact.deviation(exact).loss == exact.deviation(exact).gradients == 0.0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_infinitely_far(value):
    exact = StepValues(1.0, (np.ones(2),))
    assert StepValues(value, (np.ones(2),)).deviation(exact).loss == math.inf
    of_gradient = StepValues(1.0, (np.array([1.0, value]),)).deviation(exact)
    assert of_gradient.gradients == math.inf
    assert not of_gradient.is_finite


def test_subnormal_gradients_count():
    tiny = np.full(3, 1e-42)
    assert StepValues(1.0, (np.zeros(3),)).deviation(StepValues(1.0, (tiny,))).gradients == 1.0
