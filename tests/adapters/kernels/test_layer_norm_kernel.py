import keras
import numpy as np
import pytest
from against_float64 import assert_as_exact, three_ways

from deepseek_hpf.adapters.kernels import layer_norm_tensorflow as kernel

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


def make(**arguments):
    return lambda policy: keras.layers.LayerNormalization(dtype=policy, **arguments)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(3, 7, 64), (4, 1, 2, 33), (64, 8)])
def test_errors_are_the_dtypes_own(policy, shape):
    x = 2.0 + 3.0 * RNG.standard_normal(shape)
    ways = three_ways(make(epsilon=1e-6), kernel.wrap, x, policy)
    assert_as_exact(ways, slack=1.05, least=2e-6)


def test_a_mean_far_from_zero():
    x = 1000.0 + RNG.standard_normal((8, 128))
    assert_as_exact(three_ways(make(), kernel.wrap, x, "float32"), slack=1.5, least=1e-4)


@pytest.mark.parametrize("shape", [(0, 8), (5, 1)])
def test_no_rows_and_single_features(shape):
    layer = make()("float32")
    layer.build((None, shape[1]))
    own = layer(np.ones(shape, "float32"))
    layer.call = kernel.wrap(layer, layer.call)
    np.testing.assert_array_equal(layer(np.ones(shape, "float32")), own)


def test_one_bad_row_stays_one():
    x = RNG.standard_normal((3, 8)).astype("float32")
    x[0, 0], x[1, 1] = np.nan, np.inf
    layer = make()("float32")
    layer.build(x.shape)
    layer.call = kernel.wrap(layer, layer.call)
    finite = np.isfinite(keras.ops.convert_to_numpy(layer(x))).all(-1)
    assert finite.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axis": 1}, "last axis"),
        ({"axis": [1, 2]}, "last axis"),
        ({"scale": False}, "scale"),
        ({"rms_scaling": True}, "root mean square"),
    ],
)
def test_refused(arguments, words):
    layer = make(**arguments)("mixed_bfloat16")
    layer.build((None, 4, 8))
    assert words in kernel.refuses(layer)


def test_the_last_axis_may_be_counted_from_the_front():
    layer = make(axis=2)("mixed_bfloat16")
    layer.build((None, 4, 8))
    assert kernel.refuses(layer) is None
