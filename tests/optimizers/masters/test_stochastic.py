"""Without masters, updates that are smaller than a weight can take arrive on average."""

import keras
import numpy as np
import pytest
from keras import ops
from steps import bits, compiled_apply, numbers, tensors, variables

from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer


def made(inner, form="stochastic", seed=0):
    keras.utils.set_random_seed(seed)
    return LossScaleOptimizer(inner, initial_scale=None, master_weights=form)


def state_of(optimizer):
    return ops.convert_to_numpy(optimizer.masters.variables[0]).tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_small_updates_arrive_on_average(dtype):
    size, steps, rate = 4000, 50, 1e-5
    w = variables(np.ones(size), dtype=dtype)
    step = compiled_apply(made(keras.optimizers.SGD(rate)), w)
    for _ in range(steps):
        step(tensors(np.ones(size), dtype=dtype))
    found = numbers(w)[0]
    # Below 1 the numbers lie 2^-8 and 2^-11 apart: rounded to the nearest, not one would move.
    spacing = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    assert set((1 - found) / spacing) <= set(range(8))
    # A weight goes down a spacing with probability rate / spacing a step: five standard deviations.
    deviation = np.sqrt(steps * rate * spacing / size)
    assert abs(found.mean() - (1 - steps * rate)) < 5 * deviation


def test_seed_and_counter_decide_all():
    def run(seed):
        w = variables(np.ones(500), np.ones(500), dtype="bfloat16")
        optimizer = made(keras.optimizers.Adam(1e-3), seed=seed)
        step = compiled_apply(optimizer, w)
        for _ in range(3):
            step(tensors(np.ones(500), np.ones(500), dtype="bfloat16"))
        return optimizer, w

    (first, v), (again, w), (other, u) = run(1), run(1), run(2)
    assert state_of(first) == state_of(again)
    assert state_of(first)[1] == 3
    assert bits(v) == bits(w)
    assert state_of(other)[0] != state_of(first)[0]
    assert bits(v) != bits(u)
    # Nor are two variables rounded alike.
    assert bits(v[:1]) != bits(v[1:])


def test_a_skipped_step_draws_nothing():
    optimizer = made(keras.optimizers.SGD(1e-3))
    w = variables(np.ones(5), dtype="bfloat16")
    step = compiled_apply(optimizer, w)
    step(tensors(np.full(5, np.inf)))
    assert state_of(optimizer)[1] == 0


def test_nothing_but_seed_and_counter_is_kept():
    optimizer = made(keras.optimizers.SGD(1e-3))
    w = [*variables([1.0], dtype="bfloat16"), *variables([1.0]), *variables([1.0], dtype="float16")]
    optimizer.build(w)
    assert [tuple(v.shape) for v in optimizer.variables if len(v.shape)] == [(2,)]
    assert optimizer.target(w[1]) is w[1]
    assert made("sgd").masters.variables == []


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [None, 2])
def test_decay_constraints_averages_and_accumulation(accumulated):
    def inner():
        return keras.optimizers.AdamW(
            0.01,
            weight_decay=0.1,
            use_ema=accumulated is not None,
            ema_overwrite_frequency=accumulated,
            gradient_accumulation_steps=accumulated,
        )

    def run(optimizer, dtype):
        random = np.random.default_rng(0)
        w = variables(random.uniform(0.5, 1.0, 3000), dtype=dtype)
        w[0].constraint = keras.constraints.NonNeg()
        step = compiled_apply(optimizer, w)
        for _ in range(4):
            step(tensors(random.normal(size=3000), dtype="bfloat16"))
        optimizer.finalize_variable_values(w)
        return numbers(w)[0]

    found = run(made(inner()), "bfloat16")
    wanted = run(LossScaleOptimizer(inner(), initial_scale=None), "float32")
    start = numbers(variables(np.random.default_rng(0).uniform(0.5, 1.0, 3000), dtype="bfloat16"))
    # Eight roundings and the first one, each below the spacing, 2^-8; on average far less.
    assert np.abs(found - wanted).max() < 9 * 2.0**-8
    assert abs((found - wanted).mean()) < 5 * 3 * 2.0**-9 / np.sqrt(3000)
    assert np.abs(wanted - start[0]).max() > 0.01
