"""Adam with 8-bit moments: codes within their bounds, steps near those of float32."""

import keras
import numpy as np
import pytest
from keras import ops
from steps import bits, compiled_apply, numbers, tensors, variables

import deepseek_hpf as hpf
from deepseek_hpf.optimizers import Adam8bit, AdamW8bit
from deepseek_hpf.optimizers.block_code import BlockCode, Packed

SHAPE = (70, 60)


def there_and_back(code, x):
    packed = code.pack(ops.convert_to_tensor(x))
    return packed, ops.convert_to_numpy(code.restore(packed, x.shape)).astype("float64")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("block_size", [256, 2048])
def test_codes_are_off_by_what_is_said_at_most(signed, block_size):
    random = np.random.default_rng(0)
    x = (random.normal(size=SHAPE) * 10.0 ** random.uniform(-9, 3, SHAPE)).astype("float32")
    x[3, :5] = 0.0
    x = x if signed else np.abs(x)
    code = BlockCode(block_size, signed)
    packed, found = there_and_back(code, x)
    assert isinstance(packed, Packed)
    flat = np.zeros(code.blocks(x.size) * block_size)
    flat[: x.size] = x.ravel()
    largest = np.abs(flat.reshape(-1, block_size)).max(axis=1)
    np.testing.assert_array_equal(ops.convert_to_numpy(packed.largest), largest)
    largest = largest.repeat(block_size)[: x.size].reshape(x.shape)
    place, half = np.abs(x / largest) ** 0.25, 0.5 / code.codes
    bound = largest * np.maximum((place + half) ** 4 - place**4, (2 * half) ** 4)
    np.testing.assert_array_less(np.abs(found - x), bound * (1 + 1e-4) + largest * 1e-6 + 1e-30)
    np.testing.assert_array_equal(found[x == 0], 0.0)
    if not signed:
        assert (found[x > 0] > 0).all()


def test_what_was_restored_packs_to_the_same_codes():
    x = np.random.default_rng(0).normal(size=SHAPE).astype("float32")
    for code in (BlockCode(256, signed=True), BlockCode(256, signed=False)):
        packed, found = there_and_back(code, x if code.signed else np.abs(x))
        again, _ = there_and_back(code, found.astype("float32"))
        for one, other in zip(packed, again, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))


def test_zeros_stay_zero_and_a_nan_shows():
    code = BlockCode(256, signed=True)
    np.testing.assert_array_equal(there_and_back(code, np.zeros((300,), "float32"))[1], 0.0)
    x = np.ones((300,), "float32")
    x[280] = np.nan
    found = there_and_back(code, x)[1]
    assert np.isnan(found[256:]).all()
    np.testing.assert_array_equal(found[:256], 1.0)


def steps_of(optimizer, steps, shape=SHAPE, dtype="float32"):
    random = np.random.default_rng(0)
    w = variables(random.normal(size=shape), np.ones(3), dtype=dtype)
    step, seen = compiled_apply(optimizer, w), [numbers(w)]
    for _ in range(steps):
        step(tensors(random.normal(size=shape) + 0.5, np.full(3, 0.1), dtype=dtype))
        seen.append(numbers(w))
    return w, seen


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Adam8bit, keras.optimizers.Adam), (AdamW8bit, keras.optimizers.AdamW)],
)
def test_steps_are_those_of_float32_within_a_bound(ours, theirs):
    rate = 0.01
    optimizer = ours(rate)
    _, found = steps_of(optimizer, 8)
    _, wanted = steps_of(theirs(rate), 8)
    # The first step starts from zeros, which are kept exactly.
    np.testing.assert_allclose(found[1][0], wanted[1][0], rtol=1e-5, atol=1e-6)
    for before, after, exact_before, exact_after in zip(
        found[1:], found[2:], wanted[1:], wanted[2:], strict=False
    ):
        step, exact = after[0] - before[0], exact_after[0] - exact_before[0]
        # A step of Adam is the learning rate at most, about; the codes bring 5 % of it on average.
        assert np.abs(step - exact).mean() < 0.05 * rate
        assert np.abs(step).max() < 4 * rate
    # Small variables are updated by Keras, bit by bit.
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one[1], other[1], rtol=1e-6)


def test_large_variables_take_two_bytes_and_small_ones_are_left():
    optimizer = Adam8bit(0.01)
    optimizer.build(variables(np.zeros(SHAPE), np.zeros(4095)))
    dtypes = [keras.backend.standardize_dtype(v.dtype) for v in optimizer.variables[2:]]
    assert dtypes == ["int8", "float32", "uint8", "float32", "float32", "float32"]
    assert [tuple(v.shape) for v in optimizer.variables[2:4]] == [(17, 256), (17,)]


@pytest.mark.parametrize("form", [False, True, "split", "stochastic"])
def test_inside_of_the_wrapper_with_every_form_of_masters(form):
    inner = Adam8bit(0.01)
    optimizer = hpf.LossScaleOptimizer(inner, initial_scale=None, master_weights=form)
    w, seen = steps_of(optimizer, 3, dtype="bfloat16")
    _, exact = steps_of(keras.optimizers.Adam(0.01), 3)
    assert np.isfinite(seen[-1][0]).all()
    moved, wanted = seen[-1][0] - seen[0][0], exact[-1][0] - exact[0][0]
    # bfloat16 weights around 1 lie 2^-8 apart or more; three steps are 0.03 together.
    assert np.abs(moved - wanted).mean() < 0.01
    before = bits(optimizer.inner_optimizer.variables), bits(w)
    compiled_apply(optimizer, w)(tensors(np.full(SHAPE, np.inf), np.zeros(3), dtype="bfloat16"))
    assert before == (bits(optimizer.inner_optimizer.variables), bits(w))


def test_accumulation_averages_and_decay():
    arguments = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 2}
    _, found = steps_of(AdamW8bit(0.01, weight_decay=0.1, **arguments), 4)
    _, wanted = steps_of(keras.optimizers.AdamW(0.01, weight_decay=0.1, **arguments), 4)
    np.testing.assert_array_equal(found[1][0], found[0][0])
    np.testing.assert_allclose(found[2][0], wanted[2][0], rtol=1e-5, atol=1e-6)
    assert np.abs(found[4][0] - wanted[4][0]).mean() < 1e-3


def test_config_comes_back():
    optimizer = AdamW8bit(0.02, weight_decay=0.3, beta_1=0.8, block_size=64, min_8bit_size=10)
    saved = keras.saving.serialize_keras_object(optimizer)
    loaded = keras.saving.deserialize_keras_object(saved)
    assert type(loaded) is AdamW8bit
    assert loaded.get_config() == optimizer.get_config()
    assert (loaded.block_size, loaded.min_8bit_size, loaded.weight_decay) == (64, 10, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"amsgrad": True}, "leave it out. Received: amsgrad=True"),
        ({"block_size": 0}, "at least 1. Received: block_size=0"),
        ({"min_8bit_size": 1.5}, "min_8bit_size=1.5"),
        ({"block_size": True}, "block_size=True"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(hpf.ConfigError, match=message):
        Adam8bit(**arguments)


@pytest.mark.slow
def test_digits_are_learnt_as_well_as_in_float32():
    (x, y), (x_test, y_test) = hpf.data.digits()
    x, x_test = (np.reshape(a, (len(a), -1)).astype("float32") for a in (x, x_test))

    def accuracy(optimizer):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
        model.fit(x, y, batch_size=64, epochs=8, verbose=0)
        return model.evaluate(x_test, y_test, verbose=0)[1]

    eight, whole = accuracy(Adam8bit(3e-3)), accuracy(keras.optimizers.Adam(3e-3))
    assert whole > 0.93
    assert eight > whole - 0.015
