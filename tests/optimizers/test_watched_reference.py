"""The watch with gradient accumulation, masters and skips, step by step against float64."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from steps import BACKEND, compiled_apply, numbers

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

slow = pytest.mark.slow
SHAPES = [(3, 4), (5,), (3, 4), ()]
STEPS, SAMPLE_EVERY, ACCUMULATED = 8, 2, 2
KINDS = {
    "plain": (None, False),
    "accumulated": (ACCUMULATED, False),
    "masters": (None, True),
    "both": (ACCUMULATED, True),
}
# By the road of `jit_compile` off, and of on; what takes the compilers long, or JAX without its
# compiler, is for the slow suite.
CASES = {
    "tensorflow": [("compiled", kind) for kind in KINDS]
    + [pytest.param("xla", kind, marks=slow) for kind in ("accumulated", "both")],
    "jax": [("compiled", kind) for kind in KINDS] + [pytest.param("eager", "both", marks=slow)],
    "torch": [("eager", kind) for kind in KINDS] + [pytest.param("inductor", "both", marks=slow)],
}[BACKEND]


class Reference:
    """What a watch has to say of one window, in float64.

    Args:
        smallest: Smallest normal number of the dtype in which the layer of each variable computes.
        accumulated: Steps of an update.
    """

    def __init__(self, smallest, accumulated):
        self.smallest, self.accumulated = smallest, accumulated or 1
        self.steps = self.finite = self.updates = 0
        self.measured, self.changes = [], []
        self.nonfinite = np.zeros(len(smallest), int)
        self.sums = [0.0] * len(smallest)

    def step(self, gradients, scale, before, after):
        """Takes a step in: gradients of the scaled loss, and the weights around it."""
        self.steps += 1
        bad = [int((~np.isfinite(g)).sum()) for g in gradients]
        if any(bad):
            self.nonfinite += bad
            return
        self.finite += 1
        if (self.steps - 1) % SAMPLE_EVERY == 0:
            self.measured.append(list(map(self._gradient, gradients, self.smallest)))
            self.measured[-1] = [(n / scale, m / scale, u) for n, m, u in self.measured[-1]]
        self.sums = [s + g / scale for s, g in zip(self.sums, gradients, strict=True)]
        if self.finite % self.accumulated:
            return
        self.updates += 1
        if (self.updates - 1) % SAMPLE_EVERY == 0:
            self.changes.append(list(map(self._change, self.sums, before, after)))
        self.sums = [0.0 * s for s in self.sums]

    def assert_told_by(self, window):
        """Compares a window with what was taken in."""
        assert window.steps == self.steps
        assert window.skipped == self.steps - self.finite
        gradients, changes = np.array(self.measured), np.array(self.changes)
        rows = zip(window.variables, self.nonfinite, strict=True)
        for i, (told, nonfinite) in enumerate(rows):
            near = {"rel": 2e-5, "abs": 1e-30}
            norm, largest, underflow = gradients[:, i].T
            update, weight, lost = changes[:, i].mean(axis=0)
            assert told.gradient_norm == pytest.approx(norm.mean(), **near)
            assert told.largest == pytest.approx(largest.max(), **near)
            assert told.underflow == pytest.approx(underflow.mean(), **near)
            assert told.update_norm == pytest.approx(update, **near)
            assert told.weight_norm == pytest.approx(weight, **near)
            assert told.update_ratio == pytest.approx(update / weight, rel=5e-5, abs=1e-30)
            assert told.lost_updates == pytest.approx(lost, **near)
            assert told.nonfinite == nonfinite

    @staticmethod
    def _gradient(gradient, smallest):
        magnitudes = np.abs(gradient).ravel()
        return np.linalg.norm(magnitudes), magnitudes.max(), (magnitudes < smallest).mean()

    @staticmethod
    def _change(pulled, before, after):
        pulls, stuck = pulled != 0.0, before == after
        lost = (pulls & stuck).sum() / max(pulls.sum(), 1)
        return np.linalg.norm((after - before).ravel()), np.linalg.norm(before.ravel()), lost


def drawn(random, spread):
    """Numbers of very different sizes, a third of them zeros, in each shape."""
    for shape in SHAPES:
        values = random.normal(size=shape) * 10.0 ** random.uniform(-spread, spread, size=shape)
        yield np.where(random.random(shape) < 1 / 3, 0.0, values).astype("float32")


def gradients(random, is_bad):
    """Those of a step; where it is bad, three of their numbers are not finite."""
    values = list(drawn(random, 6.0))
    if is_bad:
        values[0][random.integers(3), :2] = random.choice([np.inf, -np.inf, np.nan], 2)
        values[3] = np.float32(np.nan)
    return values


def applied(optimizer, weights, road):
    if road == "compiled":
        return compiled_apply(optimizer, weights)
    optimizer.build(weights)
    if road == "eager":
        return lambda gradients: optimizer.apply(gradients, weights)
    if BACKEND == "torch":
        import torch

        return torch.compile(lambda gradients: optimizer.apply(gradients, weights))
    import tensorflow as tf

    return tf.function(lambda g: optimizer.apply(g, weights), jit_compile=True)


def made(kind):
    """Weights, an optimizer with a watch, and the reference."""
    accumulated, masters = KINDS[kind]
    dtype = "bfloat16" if masters else "float32"
    computes = ["float16", dtype, dtype, "float16"]
    random = np.random.default_rng()
    # Zeros aside, so that none of the weights' norms is 0, of sizes at which updates are lost.
    weights = [keras.Variable(v + 10.0, dtype=dtype) for v in drawn(random, 1.0)]
    inner = keras.optimizers.SGD(0.25, gradient_accumulation_steps=accumulated)
    optimizer = LossScaleOptimizer(inner, initial_scale=1024.0, master_weights=masters)
    names = dict(zip(map(id, weights), computes, strict=True))
    watch = optimizer.watch_gradients(STEPS, SAMPLE_EVERY, lambda variable: names[id(variable)])
    smallest = [FORMATS[name].smallest_normal for name in computes]
    return weights, optimizer, watch, Reference(smallest, accumulated)


@pytest.mark.parametrize(("road", "kind"), CASES)
def test_every_figure_is_as_in_float64(road, kind):
    weights, optimizer, watch, reference = made(kind)
    apply = applied(optimizer, weights, road)
    targets = [optimizer.target(weight) for weight in weights]
    assert {t.dtype for t in targets} == {"float32"}
    random = np.random.default_rng()
    bad_step = random.integers(STEPS)
    for step in range(STEPS):
        values = gradients(random, is_bad=step == bad_step)
        pulls = [ops.cast(ops.convert_to_tensor(v), weights[0].dtype) for v in values]
        scale, before = float(ops.convert_to_numpy(optimizer.dynamic_scale)), numbers(targets)
        apply(pulls)
        reference.step(numbers(pulls), scale, before, numbers(targets))
    assert list(reference.nonfinite) == [2, 0, 0, 1]
    reference.assert_told_by(watch.last_window())


@slow
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("kind", ["accumulated", "both"])
def test_every_figure_is_as_in_float64_on_two_replicas(kind):
    script = Path(__file__).with_name("watched_replicas_tensorflow.py")
    done = subprocess.run([sys.executable, str(script), kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
