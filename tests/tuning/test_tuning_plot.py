"""Names in the picture of a tuning cover no other name."""

from dataclasses import replace

import pytest

from deepseek_hpf.tuning.candidates import blanket
from deepseek_hpf.tuning.plot import _levels

pytestmark = pytest.mark.pure


def candidates(*points):
    float32 = blanket("float32", kernels=False)
    return [replace(float32, seconds=seconds, loss_error=error) for seconds, error in points]


def test_names_of_points_that_are_near_have_lines_of_their_own():
    points = [(0.005, 0.0), (0.0051, 0.0), (0.008, 2e-6), (0.0052, 1e-8)]
    assert _levels(candidates(*points)) == [0, 1, 0, 2]


def test_a_line_that_is_free_again_is_taken():
    points = [(1.0, 1e-3), (1.2, 1e-3), (1.4, 1e-3), (2.0, 1e-3)]
    assert _levels(candidates(*points)) == [0, 1, 0, 0]


def test_one_point_and_none():
    assert _levels(candidates((1.0, 1e-3))) == [0]
    assert _levels([]) == []
