"""Masters in split form train as float32 masters do, bit by bit, in 4 bytes."""

import logging

import keras
import numpy as np
import pytest
from keras import ops
from steps import bits, compiled_apply, numbers, tensors, variables

from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.masters.rounding import rounded

INNERS = {
    "sgd": lambda: keras.optimizers.SGD(0.03, momentum=0.9, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "decayed": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "averaged": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=3),
    "accumulated": lambda: keras.optimizers.AdamW(0.01, gradient_accumulation_steps=2),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
}


def trained(form, inner, steps=6, **arguments):
    random = np.random.default_rng(0)
    weights = variables(random.normal(size=(60, 40)), np.zeros(40), dtype="bfloat16")
    weights[1].constraint = keras.constraints.NonNeg()
    weights += variables(random.normal(size=(3,)))
    optimizer = LossScaleOptimizer(inner(), master_weights=form, initial_scale=4.0, **arguments)
    step = compiled_apply(optimizer, weights)
    for _ in range(steps):
        gradients = [random.normal(size=w.shape) * 0.1 for w in weights]
        step([*tensors(*gradients[:2], dtype="bfloat16"), *tensors(gradients[2])])
    return optimizer, weights


FAST = ("adam",)


def assert_alike(found, wanted):
    """The same bits; XLA is free to round once or twice where it joins two operations to one."""
    if keras.backend.backend() != "jax":
        assert bits(found) == bits(wanted)
        return
    for one, other in zip(numbers(found), numbers(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "inner", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in INNERS]
)
def test_training_is_that_of_float32_masters_bit_by_bit(inner):
    rule = None if inner == "averaged" else clipping.Adaptive(0.1)
    whole, w = trained(True, INNERS[inner], clipping=rule)
    split, v = trained("split", INNERS[inner], clipping=rule)
    for _ in range(2):
        assert_alike(map(split.target, v), map(whole.target, w))
        assert bits(v) == bits([rounded(m, d) for m, d in masters_and_dtypes(split, v)])
        if keras.backend.backend() != "jax":
            assert bits(v) == bits(w)
        split.finalize_variable_values(v)
        whole.finalize_variable_values(w)
    assert_alike(split.inner_optimizer.variables, whole.inner_optimizer.variables)


def masters_and_dtypes(optimizer, weights):
    return [(optimizer.target(w), keras.backend.standardize_dtype(w.dtype)) for w in weights]


def test_a_master_halfway_between_two_weights_is_kept():
    # 1 + 2^-8 lies halfway between 1 and 1 + 2^-7, -1 - 3 * 2^-8 between its neighbours.
    for form in (True, "split"):
        optimizer = LossScaleOptimizer(
            keras.optimizers.SGD(1.0), initial_scale=None, master_weights=form
        )
        w = variables([1.0, -1.0], dtype="bfloat16")
        compiled_apply(optimizer, w)(tensors([-(2.0**-8), 3 * 2.0**-8]))
        np.testing.assert_array_equal(numbers(w)[0], [1 + 2.0**-7, -1 - 2.0**-6])
        masters = numbers([optimizer.target(w[0])])[0]
        np.testing.assert_array_equal(masters, [1 + 2.0**-8, -1 - 3 * 2.0**-8])


def test_four_bytes_a_parameter():
    optimizer, w = trained("split", INNERS["sgd"], steps=0)
    kept = [v for v in optimizer.variables if tuple(v.shape) == (60, 40)]
    kept = [v for v in kept if all(v is not slot for slot in optimizer.inner_optimizer.variables)]
    assert [keras.backend.standardize_dtype(v.dtype) for v in kept] == ["int16"]
    assert keras.backend.standardize_dtype(w[0].dtype) == "bfloat16"
    assert optimizer.target(w[2]) is w[2]


def test_float16_variables_have_float32_masters(caplog):
    w = [*variables([1.0], dtype="float16"), *variables([1.0], dtype="bfloat16")]
    optimizer = LossScaleOptimizer("sgd", master_weights="split")
    with caplog.at_level(logging.INFO, "deepseek_hpf"):
        optimizer.build(w)
    assert "1 of 2 variables are float16 and have float32 masters" in caplog.text
    kept = [keras.backend.standardize_dtype(v.dtype) for v in optimizer.variables]
    assert kept.count("int16") == 1


def test_an_assignment_wins_and_what_is_not_assigned_keeps_its_lower_bits():
    optimizer = LossScaleOptimizer(
        keras.optimizers.SGD(1.0), initial_scale=None, master_weights="split"
    )
    w = variables([1.0, 1.0, 1.0, 1.0], dtype="bfloat16")
    master = lambda: numbers([optimizer.target(w[0])])[0]  # noqa: E731
    step = compiled_apply(optimizer, w)
    step(tensors([1e-3] * 4))
    drifted = master()
    assert (drifted != 1.0).all()
    w[0].assign(np.float32([1.0, 4.0, 0.0, -2.0]))
    step(tensors([0.0] * 4))
    np.testing.assert_array_equal(numbers(w)[0], [1.0, 4.0, 0.0, -2.0])
    assert master()[0] == drifted[0]
    np.testing.assert_array_less(abs(master() - numbers(w)[0]), [2.0**-8, 2.0**-6, 1e-38, 2.0**-7])
    optimizer.target(w[0]).assign(np.float32([0.1, 0.2, 0.3, 0.4]))
    np.testing.assert_array_equal(master(), np.float32([0.1, 0.2, 0.3, 0.4]))
    with pytest.raises(ValueError, match="shape"):
        optimizer.target(w[0]).assign(np.float32([0.1]))


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("inner", ["sgd", "adam"])
def test_sparse_gradients_too(inner):
    import tensorflow as tf

    def run(form):
        w = variables(np.random.default_rng(0).normal(size=(9, 5)), dtype="bfloat16")
        optimizer = LossScaleOptimizer(INNERS[inner](), master_weights=form)
        optimizer.build(w)
        values = ops.convert_to_tensor(np.random.default_rng(1).normal(size=(4, 5)), "float32")
        step = tf.function(
            lambda rows: optimizer.apply(
                [tf.IndexedSlices(rows, tf.constant([1, 7, 1, 2]), tf.constant([9, 5]))], w
            )
        )
        for _ in range(3):
            step(values)
        return bits([*w, optimizer.target(w[0])])

    assert run("split") == run(True)


@pytest.mark.parametrize("form", ["split", "stochastic"])
def test_a_nonfinite_gradient_changes_no_bit(form):
    optimizer, w = trained(form, INNERS["adam"], steps=2)
    before = bits(w), bits(optimizer.inner_optimizer.variables), bits(map(optimizer.target, w))
    compiled_apply(optimizer, w)(tensors(np.full((60, 40), np.nan), np.zeros(40), np.zeros(3)))
    after = bits(w), bits(optimizer.inner_optimizer.variables), bits(map(optimizer.target, w))
    assert before == after
    assert int(optimizer.skipped_steps) == 1
