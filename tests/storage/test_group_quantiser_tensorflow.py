"""TensorFlow's quantiser makes the codes of the one that runs everywhere."""

import functools

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from deepseek_hpf.storage.group_quantiser import GroupQuantiser  # noqa: E402
from deepseek_hpf.storage.group_quantiser_tensorflow import compress, restore  # noqa: E402

pytestmark = pytest.mark.backend("tensorflow")

RNG = np.random.default_rng()


def compiled(function, *arguments):
    return tf.function(functools.partial(function, *arguments), jit_compile=True, autograph=False)


def normal(x):
    return x


def relu(x):
    return np.maximum(x, 0)


def positive(x):
    return np.abs(x) + 1


def with_special_values(x):
    x.flat[RNG.integers(0, x.size, 40)] = np.nan
    x.flat[RNG.integers(0, x.size // 2, 20)] = np.inf
    x.flat[RNG.integers(0, x.size // 3, 20)] = -np.inf
    x[256:512] = np.nan
    return x


def extreme(x):
    x[:6] = [3.4028235e38, -3.4028235e38, 1.1754944e-38, -1.1754944e-38, 0.0, -0.0]
    x[256:512] = 0.0
    x[512:768] = -2.5
    return x


SLOW = pytest.mark.slow
FORMS = [
    relu,
    with_special_values,
    extreme,
    *(pytest.param(f, marks=SLOW) for f in (normal, positive)),
]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(d, marks=SLOW) for d in ("bfloat16", "float16", "float64"))]
)
def test_codes_are_those_of_the_other_quantiser(bits, form, dtype):
    x = tf.cast(form(RNG.standard_normal(41 * 333).astype("float32")), dtype)
    found = compiled(compress, bits, 5)(x)
    expected = compiled(GroupQuantiser(bits, 5).compress)(x)
    for bound, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(bound, other, rtol=1e-6)
    # The last bit of a quotient may push a value over the edge.
    assert np.mean(found[0] != expected[0]) < 1e-3
    values = compiled(restore, bits, x.dtype)(*found)[: x.shape[0]]
    same = compiled(lambda *p: GroupQuantiser(bits, 5).restore(p, x.shape, dtype))(*found)
    assert np.array_equal(tf.cast(values, tf.float64), tf.cast(same, tf.float64), equal_nan=True)
    odd = ~np.isfinite(tf.cast(x, tf.float64)) | (tf.cast(x, tf.float64).numpy() == 0)
    back, x = (tf.cast(value, tf.float64).numpy() for value in (values, x))
    assert np.array_equal(back[odd], x[odd], equal_nan=True)
    assert np.isfinite(back[~odd]).all()


@pytest.mark.parametrize("size", [0, 1, 255])
def test_sizes(size):
    x = tf.constant(RNG.standard_normal(size), tf.float32)
    back = compiled(restore, 8, tf.float32)(*compiled(compress, 8, 0)(x))
    assert np.allclose(back[:size], x, atol=0.1)
    assert len(back) == 256 * (size > 0)
