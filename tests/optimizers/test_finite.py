"""The check and the norm: against float64, and where squares leave the range of the format."""

import keras
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.optimizers.finite import FLOAT32_MAX, all_finite, gradient_statistics


def tensors(*values, dtype="float32"):
    return [ops.convert_to_tensor(np.asarray(value, "float32"), dtype) for value in values]


def measured(gradients, divisor=1.0):
    statistics = gradient_statistics(gradients, divisor)
    return bool(statistics.finite), float(statistics.norm)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norm_against_float64(dtype):
    random = np.random.default_rng()
    gradients = tensors(
        random.normal(size=(7, 5)), random.normal(size=()), np.zeros((0, 3)), [3.0], dtype=dtype
    )
    arrays = [ops.convert_to_numpy(ops.cast(g, "float32")).astype("float64") for g in gradients]
    expected = np.sqrt(sum((a**2).sum() for a in arrays))
    assert measured(gradients) == (True, pytest.approx(expected, rel=1e-6))
    assert measured(gradients, 8.0) == (True, pytest.approx(expected / 8, rel=1e-6))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_one_bad_number_is_found(value, dtype):
    finite, norm = measured(tensors(np.ones(300), [1.0, value], dtype=dtype))
    assert not finite
    assert np.isnan(norm) if np.isnan(value) else norm == np.inf


def test_float16_squares_have_the_range_of_float32():
    assert measured(tensors([65504.0] * 4, dtype="float16")) == (True, 131008.0)


@pytest.mark.parametrize("size", [1e19, 1e25, 3e38])
def test_finite_beyond_the_range_of_squares(size):
    finite, norm = measured(tensors([size, 0.0], [1e-30]), 4.0)
    assert finite
    assert norm == pytest.approx(size / 4, rel=1e-5)


def test_the_norm_of_finite_gradients_is_finite():
    assert measured(tensors(np.full(100, 3e38))) == (True, pytest.approx(FLOAT32_MAX, rel=1e-6))


def test_a_nan_beside_an_overflowing_square_is_found():
    finite, norm = measured(tensors([1e25, np.nan]))
    assert not finite
    assert np.isnan(norm)


def test_unscaling_by_less_than_one_may_overflow():
    assert measured(tensors([1e38]), 2.0**-14)[0] is False
    assert measured(tensors([1e30]), 2.0**-14)[0] is True


def test_tiny_and_absent_gradients():
    assert measured(tensors(np.zeros(3))) == (True, 0.0)
    assert measured([]) == (True, 0.0)
    finite, norm = measured(tensors([1e-42]))
    assert finite
    assert 0.0 <= norm < 1e-40


@pytest.mark.backend("tensorflow", "torch")
def test_float64():
    finite, norm = measured([keras.ops.convert_to_tensor(np.array([3e200, 4e200]), "float64")])
    assert finite
    assert norm == pytest.approx(FLOAT32_MAX, rel=1e-6)
    assert measured([keras.ops.convert_to_tensor(np.array([3e20, 4e20]))]) == (
        True, pytest.approx(5e20, rel=1e-6),
    )  # fmt: skip


def test_all_finite():
    assert bool(all_finite([]))
    assert bool(all_finite(tensors([1.0], np.zeros((0,)))))
    assert not bool(all_finite(tensors([1.0], [np.nan])))
