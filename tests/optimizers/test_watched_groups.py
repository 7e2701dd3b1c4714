"""Variables of one shape are measured together: in any order and dtype, against float64."""

import keras
import numpy as np
import pytest
from keras import ops
from steps import BACKEND, compiled_apply, numbers

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.variable_figures import SAMPLE, TOGETHER

LARGE = (257, 256)  # on its own, and sampled
pytestmark = pytest.mark.slow_with("jax")

SHAPES = [(3,), (2, 3), LARGE, (3,), (0, 4), (), (2, 3), LARGE, (3, 2), (0, 4), (90, 91), (90, 91)]
SCALE = 256.0


def made(random, shape, dtype, spread=3.0):
    values = random.normal(size=shape) * 10.0 ** random.uniform(-spread, spread, size=shape)
    zeros = random.random(shape) < 0.2
    return ops.cast(ops.convert_to_tensor(np.where(zeros, 0.0, values), "float32"), dtype)


def applied(optimizer, weights, road):
    if road == "eager":
        optimizer.build(weights)
        return lambda gradients: optimizer.apply(gradients, weights)
    if road == "xla":
        import tensorflow as tf

        optimizer.build(weights)
        return tf.function(lambda g: optimizer.apply(g, weights), jit_compile=True)
    return compiled_apply(optimizer, weights)


ROADS = ["compiled"]
if BACKEND == "tensorflow":
    ROADS += ["eager", pytest.param("xla", marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "mixed"])
@pytest.mark.parametrize("road", ROADS)
def test_each_variable_finds_its_own_figures(road, dtype):
    random = np.random.default_rng()
    assert np.prod(LARGE) > TOGETHER > 90 * 91 > SAMPLE
    dtypes = [dtype] * len(SHAPES)
    if dtype == "mixed":
        dtypes = list(random.choice(["float32", "bfloat16", "float16"], len(SHAPES)))
    weights = [
        keras.Variable(made(random, shape, "float32", spread=1.0), dtype=own)
        for shape, own in zip(SHAPES, dtypes, strict=True)
    ]
    optimizer = LossScaleOptimizer(keras.optimizers.SGD(0.125), initial_scale=SCALE)
    watch = optimizer.watch_gradients(1, 1)
    gradients = [made(random, s, own) for s, own in zip(SHAPES, dtypes, strict=True)]
    before, pulls = numbers(weights), numbers(gradients)
    applied(optimizer, weights, road)(gradients)
    found = watch.last_window().variables
    assert [own.elements for own in found] == [int(np.prod(shape)) for shape in SHAPES]
    rows = zip(found, before, pulls, numbers(weights), dtypes, strict=True)
    for own, old, pull, new, name in rows:
        near = {"rel": 2e-5, "abs": 1e-30}
        norm = np.linalg.norm
        small = np.abs(pull) < FORMATS[name].smallest_normal
        assert own.gradient_norm == pytest.approx(norm(pull.ravel()) / SCALE, **near)
        assert own.largest == pytest.approx(np.abs(pull).max(initial=0.0) / SCALE, **near)
        assert own.underflow == pytest.approx(small.sum() / max(small.size, 1), **near)
        stuck = ((pull != 0) & (new == old)).sum() / max((pull != 0).sum(), 1)
        sampled = old.size > SAMPLE
        assert own.lost_updates == pytest.approx(stuck, abs=0.1 if sampled else 1e-6)
        if not sampled:
            assert own.update_norm == pytest.approx(norm((new - old).ravel()), **near)
            assert own.weight_norm == pytest.approx(norm(old.ravel()), **near)


def test_what_is_not_finite_is_counted_where_it_is():
    random = np.random.default_rng()
    weights = [keras.Variable(made(random, shape, "float32")) for shape in SHAPES]
    optimizer = LossScaleOptimizer("sgd")
    watch = optimizer.watch_gradients(1, 1)
    counts = [int(random.integers(0, min(np.prod(shape), 50) + 1)) for shape in SHAPES]
    counts[2] = 50
    gradients = []
    for shape, count in zip(SHAPES, counts, strict=True):
        values = np.zeros(int(np.prod(shape)), "float32")
        places = random.permutation(values.size)[:count]
        values[places] = random.choice([np.inf, -np.inf, np.nan], count)
        gradients.append(ops.convert_to_tensor(values.reshape(shape)))
    compiled_apply(optimizer, weights)(gradients)
    assert [own.nonfinite for own in watch.last_window().variables] == counts
