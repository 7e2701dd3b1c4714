import keras
import numpy as np
import pytest
from against_float64 import assert_as_exact, three_ways

from deepseek_hpf.adapters.kernels import lstm_tensorflow as kernel

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


def make(**arguments):
    return lambda policy: keras.layers.LSTM(6, dtype=policy, **arguments)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_sequences": True},
        {"return_sequences": True, "go_backwards": True, "use_bias": False},
    ],
)
def test_errors_are_the_dtypes_own(policy, arguments):
    x = RNG.standard_normal((3, 9, 5))
    ways = three_ways(make(**arguments), kernel.wrap, x, policy)
    assert_as_exact(ways, slack=1.3, least=2e-2 if policy == "mixed_bfloat16" else 2e-6)


def both(layer, *args, **kwargs):
    own = layer(*args, **kwargs)
    layer.call = kernel.wrap(layer, layer.call)
    return own, layer(*args, **kwargs)


def test_states_in_and_out():
    layer = keras.layers.LSTM(4, return_state=True)
    x = RNG.standard_normal((2, 3, 5)).astype("float32")
    states = [RNG.standard_normal((2, 4)).astype("float32") for _ in range(2)]
    own, ours = both(layer, x, initial_state=states)
    assert len(ours) == 3
    for one, other in zip(own, ours, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_stateful_layers_carry_on():
    x = RNG.standard_normal((2, 6, 3)).astype("float32")
    whole = keras.layers.LSTM(4)
    expected = whole(x)
    parts = keras.layers.LSTM(4, stateful=True)
    parts.build((2, 3, 3))
    parts.set_weights([w.numpy() for w in whole.weights])
    parts.call = kernel.wrap(parts, parts.call)
    parts(x[:, :3])
    np.testing.assert_allclose(parts(x[:, 3:]), expected, atol=1e-6)


def test_masks_run_kerass_loop():
    layer = keras.layers.LSTM(4)
    x = RNG.standard_normal((2, 5, 3)).astype("float32")
    mask = np.array([[True, True, False, False, False], [True] * 5])
    own, ours = both(layer, x, mask=mask)
    np.testing.assert_array_equal(own, ours)


def test_one_step_one_unit_one_example():
    layer = keras.layers.LSTM(1)
    own, ours = both(layer, np.ones((1, 1, 1), "float32"))
    np.testing.assert_allclose(own, ours, atol=1e-6)


def test_a_bad_example_stays_one():
    layer = keras.layers.LSTM(4)
    x = np.ones((3, 5, 2), "float32")
    x[1, 2, 0] = np.nan
    _, ours = both(layer, x)
    assert np.isfinite(ours).all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"activation": "relu"}, "tanh"),
        ({"recurrent_activation": "hard_sigmoid"}, "sigmoid"),
        ({"dropout": 0.1}, "dropout"),
        ({"unroll": True}, "unrolled"),
    ],
)
def test_refused(arguments, words):
    assert words in kernel.refuses(make(**arguments)("mixed_bfloat16"))
