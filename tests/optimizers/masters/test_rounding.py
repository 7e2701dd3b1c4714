"""Masters part and join without loss, and random rounding is exact on average."""

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from deepseek_hpf.optimizers.masters.noise import noise
from deepseek_hpf.optimizers.masters.rounding import (
    joined,
    parted,
    rounded,
    stochastically_rounded,
)

LOWS = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], "uint32")


def compiled(function):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def edge_bits():
    """Every upper half, with the lower halves at which something happens; and some others."""
    edges = (np.arange(65536, dtype="uint32")[:, None] << 16) + LOWS
    others = np.random.default_rng(0).integers(0, 2**32, 1 << 18, dtype="uint32")
    return np.concatenate([edges.ravel(), others])


def bits(x):
    return ops.convert_to_numpy(ops.view(x, "int32")).view("uint32")


def image_bits(x):
    return ops.convert_to_numpy(ops.view(x, "int16")).view("uint16")


@pytest.mark.parametrize("compile", [False, True])
def test_what_is_parted_joins_to_the_same_bits(compile):
    given = edge_bits()
    both = lambda x: (*parted(x), joined(*parted(x)))  # noqa: E731
    master = ops.convert_to_tensor(given.view("float32"))
    image, low, back = (compiled(both) if compile else both)(master)
    assert keras.backend.standardize_dtype(image.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(low.dtype) == "int16"
    nan = np.isnan(given.view("float32"))
    np.testing.assert_array_equal(bits(back)[~nan], given[~nan])
    assert np.isnan(bits(back)[nan].view("float32")).all()
    np.testing.assert_array_equal(image_bits(image), image_bits(rounded(master, "bfloat16")))
    # NumPy's rounding is to the even neighbour where two are as near; ours, away from zero.
    with np.errstate(invalid="ignore"):
        even = given.view("float32").astype(ml_dtypes.bfloat16).view("uint16")
    tie = (given & 0xFFFF) == 0x8000
    np.testing.assert_array_equal(image_bits(image)[~nan & ~tie], even[~nan & ~tie])
    np.testing.assert_array_equal(image_bits(image)[~nan & tie], ((given >> 16) + 1)[~nan & tie])
    assert np.isnan(image_bits(image)[nan].view(ml_dtypes.bfloat16).astype("float32")).all()


def test_an_assigned_image_wins_whatever_the_lower_bits_are():
    images = np.arange(65536, dtype="uint32").astype("uint16")
    for low in (-(2**15), -1, 0, 1, 2**15 - 1):
        image = ops.view(ops.convert_to_tensor(images.view("int16")), "bfloat16")
        lows = ops.convert_to_tensor(np.full(images.shape, low, "int16"))
        master = ops.convert_to_numpy(joined(image, lows))
        assigned = images.view(ml_dtypes.bfloat16).astype("float32")
        nan = np.isnan(assigned)
        assert np.isnan(master[nan]).all()
        again = image_bits(rounded(ops.convert_to_tensor(master), "bfloat16"))
        np.testing.assert_array_equal(again[~nan], images[~nan])


def neighbours(x, dtype):
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    with np.errstate(over="ignore"):
        near = x.astype(kind)
    step = np.nextafter(near, np.where(near.astype("float32") < x, np.inf, -np.inf).astype(kind))
    return near.astype("float32"), step.astype("float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_random_rounding_goes_to_a_neighbour_and_is_exact_on_average(dtype):
    random = np.random.default_rng(1)
    magnitudes = 2.0 ** random.uniform(-26, 15.99, 256)
    x = (random.choice([-1, 1], 256) * magnitudes).astype("float32")
    # Every value of the noise once: the mean over them is the mean, not an estimate.
    every = np.broadcast_to(np.arange(65536, dtype="int32"), (256, 65536))
    wide = np.broadcast_to(x[:, None], every.shape)
    result = stochastically_rounded(
        ops.convert_to_tensor(wide), dtype, ops.convert_to_tensor(np.ascontiguousarray(every))
    )
    found = ops.convert_to_numpy(ops.cast(result, "float32")).astype("float64")
    near, other = neighbours(x, dtype)
    assert ((found == near[:, None]) | (found == other[:, None])).all()
    spacing = np.abs(near.astype("float64") - other)
    exact = dtype == "bfloat16"
    within = 0.0 if exact else spacing * 2.0**-13 * (magnitudes < 2.0**-14)
    np.testing.assert_array_less(
        np.abs(found.mean(axis=1) - x), within + 1e-12 * magnitudes + 1e-30
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_random_rounding_keeps_what_needs_none_and_overflows_no_sooner(dtype):
    most = 65504.0 if dtype == "float16" else float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    beyond = np.float32(65519.0 if dtype == "float16" else np.float32(most) * (1 + 2.0**-10))
    x = np.float32([0.0, -0.0, 1.0, -1.5, most, -most, np.inf, -np.inf, np.nan, beyond, -beyond])
    for drawn in (0, 1, 0x8000, 0xFFFF):
        draws = ops.convert_to_tensor(np.full(x.shape, drawn, "int32"))
        result = stochastically_rounded(ops.convert_to_tensor(x), dtype, draws)
        found = ops.convert_to_numpy(ops.cast(result, "float32"))
        np.testing.assert_array_equal(found[:9], x[:9])
        np.testing.assert_array_equal(found[9:], [most, -most])


def draw(shape=(100, 100), seed=1, counter=2, stream=3):
    words = [ops.convert_to_tensor(np.int32(word)) for word in (seed, counter)]
    return ops.convert_to_numpy(noise(shape, *words, stream))


def test_noise_is_uniform_and_another_for_each_seed_counter_stream():
    first = draw()
    np.testing.assert_array_equal(first, draw())
    # On every back end the same bits.
    assert draw((4,), 7, 3, 2).tolist() == [49062, 17627, 46797, 26782]
    assert first.min() >= 0
    assert first.max() <= 65535
    assert abs(first.mean() - 32767.5) < 1000  # five standard deviations of 10,000 draws
    for other in (draw(seed=2), draw(counter=3), draw(stream=4)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.05
    flat = first.ravel()
    assert abs(np.corrcoef(flat[1:], flat[:-1])[0, 1]) < 0.05
