"""Adam's fused update under PyTorch, against Keras's and against float64."""

import keras
import numpy as np
import pytest
from steps import BACKEND, bits, numbers, tensors, variables

from deepseek_hpf import LossScaleOptimizer, clipping

pytestmark = pytest.mark.backend("torch")

RNG = np.random.default_rng()
SHAPES = ((1100, 1000), (7, 3), (1,), (0,))


@pytest.fixture
def fused_calls(monkeypatch):
    """Counts how often the kernel ran."""
    assert BACKEND == "torch"
    from deepseek_hpf.optimizers import fused_update_torch

    calls = []
    update = fused_update_torch.update

    def counted(*arguments):
        calls.append(arguments)
        update(*arguments)

    monkeypatch.setattr(fused_update_torch, "update", counted)
    return calls


def drawn(scale=1.0):
    values = [scale * RNG.standard_normal(shape).astype("float32") for shape in SHAPES]
    values[0][0, :6] = [0.0, -0.0, 1e-40, 1e-20, -1e-30, 1e4]
    return values


def adam_in_float64(weight, gradients, rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    m = v = 0.0
    for step, gradient in enumerate((g.astype("float64") for g in gradients), start=1):
        m = beta_1 * m + (1 - beta_1) * gradient
        v = beta_2 * v + (1 - beta_2) * gradient**2
        corrected = np.sqrt(v / (1 - beta_2**step))
        # Keras's epsilon stands beside the root that is not corrected.
        corrected += epsilon / np.sqrt(1 - beta_2**step)
        weight = weight - rate * m / (1 - beta_1**step) / corrected
    return weight


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_it_is_kerass_adam_as_exactly_as_keras(fused_calls, scale):
    starts, steps = drawn(), [drawn(scale) for _ in range(4)]
    ours, theirs = variables(*starts), variables(*starts)
    plain = keras.optimizers.Adam(1e-2)
    optimizer = LossScaleOptimizer(keras.optimizers.Adam(1e-2), initial_scale=None)
    for gradients in steps:
        optimizer.apply(tensors(*gradients), ours)
        plain.apply(tensors(*gradients), theirs)
    assert len(fused_calls) == len(steps)
    for place, (own, keras_own) in enumerate(zip(numbers(ours), numbers(theirs), strict=True)):
        exact = adam_in_float64(starts[place].astype("float64"), [s[place] for s in steps], 1e-2)
        np.testing.assert_allclose(own, exact, rtol=1e-6, atol=1e-6)
        if own.size > 1000:
            assert rms(own - exact) <= 1.05 * rms(keras_own - exact)
            assert np.max(np.abs(own - exact)) <= 1.05 * np.max(np.abs(keras_own - exact))
    slots = zip(optimizer.inner_optimizer.variables, plain.variables, strict=True)
    for own, keras_own in slots:
        assert own.shape == keras_own.shape
        np.testing.assert_allclose(*numbers([own, keras_own]), rtol=1e-5, atol=1e-6 * scale)


def test_decay_and_clipping_and_a_skipped_step_are_as_without_it(fused_calls):
    starts, steps = drawn(), [drawn() for _ in range(3)]
    steps[1][1][0, 0] = np.nan
    results = []
    for jit in (None, False):
        weights = variables(*starts)
        inner = keras.optimizers.AdamW(1e-2, weight_decay=0.1)
        optimizer = LossScaleOptimizer(inner, clipping=clipping.GlobalNorm(1.0))
        optimizer.jit_compile_update = jit
        for gradients in steps:
            scaled = [g * 2.0**15 for g in gradients]
            optimizer.apply(tensors(*scaled), weights)
        assert int(optimizer.skipped_steps) == 1
        results.append(numbers(weights))
    assert len(fused_calls) == 2
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, rtol=1e-6, atol=1e-6)


def test_gradients_that_lie_otherwise(fused_calls):
    start, gradient = drawn()[:1], drawn()[:1]
    results = []
    for transposed in (False, True):
        weights = variables(*start)
        optimizer = LossScaleOptimizer("adam", initial_scale=None)
        (given,) = tensors(*gradient)
        if transposed:
            given = given.T.contiguous().T
        optimizer.apply([given], weights)
        results.append(bits(weights))
    assert len(fused_calls) == 2
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.SGD(0.1),
        lambda: keras.optimizers.Adam(0.1, amsgrad=True),
        lambda: keras.optimizers.Nadam(0.1),
    ],
)
def test_other_optimizers_keep_keras_update(fused_calls, make):
    weights, gradients = drawn(), drawn()
    ours, theirs = variables(*weights), variables(*weights)
    LossScaleOptimizer(make(), initial_scale=None).apply(tensors(*gradients), ours)
    make().apply(tensors(*gradients), theirs)
    assert not fused_calls
    assert bits(ours) == bits(theirs)


def test_a_small_model_keeps_keras_update(fused_calls):
    ours, theirs = variables(np.ones(9)), variables(np.ones(9))
    LossScaleOptimizer("adam", initial_scale=None).apply(tensors(np.ones(9)), ours)
    keras.optimizers.Adam().apply(tensors(np.ones(9)), theirs)
    assert not fused_calls
    assert bits(ours) == bits(theirs)
