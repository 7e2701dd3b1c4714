"""Quantised activations: error against float64, mean over seeds, what has to come back exactly."""

import keras
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.storage.group_quantiser import GroupQuantiser
from deepseek_hpf.storage.noise import GROUP

pytestmark = pytest.mark.slow_with("jax")

RNG = np.random.default_rng()
SHAPES = [(), (0,), (7, 37), (2, 5, 256), (300, 333)]


def there_and_back(x, bits, seed=0, dtype=None):
    quantiser = GroupQuantiser(bits, seed)
    dtype = dtype or x.dtype.name
    packed = quantiser.compress(ops.convert_to_tensor(x, dtype))
    restored = quantiser.restore(packed, x.shape, dtype)
    assert keras.backend.standardize_dtype(restored.dtype) == dtype
    return ops.convert_to_numpy(ops.cast(restored, "float64" if dtype == "float64" else "float32"))


def steps(x, bits):
    """The step that each value's group has, in float64, special values left out."""
    flat = np.zeros(-(-x.size // GROUP) * GROUP)
    flat[: x.size] = np.asarray(x, "float64").ravel()
    rows = flat.reshape(-1, GROUP)
    finite = np.isfinite(rows)
    span = np.where(finite, rows, -np.inf).max(1) - np.where(finite, rows, np.inf).min(1)
    count = 2**bits - 2 - 3 * ~finite.all(1)
    step = np.repeat(span / count, GROUP)[: x.size].reshape(x.shape)
    rounding = 2.0**-22 * np.abs(x, where=np.isfinite(x), out=np.zeros(x.shape))
    return step * (1 + 1e-4) + rounding + 1e-36


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_below_the_step_of_the_group(bits, shape):
    x = np.asarray(RNG.normal(RNG.normal(), 10 ** RNG.uniform(-6, 6), shape), "float32")
    error = np.abs(there_and_back(x, bits).astype("float64") - x)
    assert (error <= steps(x, bits)).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_loses_no_more_than_its_own_rounding(bits, dtype):
    x = np.maximum(RNG.normal(size=(5, 777)), 0).astype("float32")
    low = ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32"))
    back = there_and_back(low, bits, dtype=dtype)
    assert (np.abs(back - low) <= steps(low, bits) + 2**-8 * np.abs(low)).all()
    assert ((back > 0) == (low > 0)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_mean_over_seeds_is_the_value(bits):
    x = RNG.normal(size=(2, GROUP)).astype("float32")
    mean = np.mean([there_and_back(x, bits, seed).astype("float64") for seed in range(50)], 0)
    # One rounding has at most half a step of deviation; 512 means stay within 6 of theirs.
    assert (np.abs(mean - x) < 6 * 0.5 * steps(x, bits) / np.sqrt(50)).all()


def test_errors_of_a_sum_are_as_those_of_independent_noise():
    """Noise that groups share would add up along a column: hundreds of times this variance."""
    x = RNG.uniform(size=(4096, GROUP)).astype("float32")
    error = (there_and_back(x, 4).astype("float64") - x) / steps(x, 4)
    # Uniform places between two codes: variance 1/6 of a step squared.
    assert 0.2 < (error.sum(0) ** 2).mean() / (4096 / 6) < 5


def test_same_seed_same_codes_and_another_seed_others():
    x = ops.convert_to_tensor(RNG.normal(size=(9, 100)).astype("float32"))
    codes = [ops.convert_to_numpy(GroupQuantiser(8, s).compress(x)[0]) for s in (7, 7, 8, -(2**70))]
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any()
    assert (codes[0] != codes[3]).any()


@pytest.mark.parametrize("bits", [4, 8])
def test_non_finite_values_and_zeros_come_back_exactly(bits):
    x = np.maximum(RNG.normal(size=(6, 300)), 0).astype("float32")
    places = [tuple(RNG.integers(0, x.shape)) for _ in range(12)]
    for place, value in zip(places, [np.nan, np.inf, -np.inf] * 4, strict=True):
        x[place] = value
    back = there_and_back(x, bits)
    odd = ~np.isfinite(x) | (x == 0)
    assert np.array_equal(back[odd], x[odd], equal_nan=True)
    ordinary = ~odd
    assert (np.abs(back - x)[ordinary] <= steps(x, bits)[ordinary]).all()
    assert (np.sign(back[ordinary]) == np.sign(x[ordinary])).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "values",
    [
        [np.nan, np.inf, -np.inf],
        [3.4028235e38, -3.4028235e38, 0.0],
        [1e-45, -3e-42, 1.1754944e-38],
        [0.0, -0.0, 0.0],
        [-2.5],
        [-1.0, 0.0],
    ],
    ids=str,
)
def test_extreme_values(bits, values):
    x = np.array(values, "float32")
    back = there_and_back(x, bits)
    finite = np.isfinite(x)
    assert np.array_equal(back[~finite], x[~finite], equal_nan=True)
    error = np.abs(back.astype("float64") - x)[finite]
    assert (error <= steps(x, bits)[finite]).all()
    assert np.isfinite(back[finite]).all()


def test_kept_bytes_are_those_of_the_arrays():
    for bits, shape in ((4, (7, 37)), (8, (300, 333))):
        packed = GroupQuantiser(bits).compress(ops.ones(shape))
        held = sum(ops.convert_to_numpy(part).nbytes for part in packed)
        assert GroupQuantiser(bits).kept_bytes(int(np.prod(shape)), "float32") == held


@pytest.mark.parametrize("bits", [0, 7, 16, "8", None])
def test_bits_that_do_not_exist_are_refused(bits):
    with pytest.raises(ConfigError, match=r"4 or 8 bits\. Received: bits="):
        GroupQuantiser(bits)
