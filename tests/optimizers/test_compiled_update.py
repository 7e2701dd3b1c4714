"""Which updates XLA compiles within a TensorFlow step, and that they come out the same."""

import keras
import numpy as np
import pytest
from steps import compiled_apply, number, numbers, variables

from deepseek_hpf.optimizers import clipping
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


@pytest.mark.parametrize("inner", ["sgd", "adamw", "adagrad"])
@pytest.mark.parametrize("rule", [None, clipping.GlobalNorm(0.1), clipping.Value(0.1)])
def test_sparse_gradients_leave_the_update_of_others_compiled(inner, rule):
    import tensorflow as tf

    weights = RNG.standard_normal((4, 5)), RNG.standard_normal((8, 5))
    values = RNG.standard_normal((3, 5))
    dense = tf.constant(RNG.standard_normal((8, 5)), "float32")

    def gradients(factor):
        scaled = tf.constant(factor * values, "float32")
        return [tf.IndexedSlices(scaled, tf.constant([2, 0, 2]), tf.constant([4, 5])), dense]

    found = []
    for jit_compile in (True, False):
        inner_optimizer = keras.optimizers.get(inner)
        optimizer = LossScaleOptimizer(inner_optimizer, initial_scale=2.0, clipping=rule)
        optimizer.jit_compile_update = jit_compile
        trained = variables(*weights)
        step = compiled_apply(optimizer, trained)
        for factor in (1.0, 1e-3, np.inf, 1.0):
            step(gradients(factor))
        library = step.get_concrete_function(gradients(1.0)).graph.as_graph_def().library
        compiled = any(function.attr["_XlaMustCompile"].b for function in library.function)
        assert compiled is jit_compile
        assert "_backend_update_step" not in vars(inner_optimizer)
        assert number(optimizer.skipped_steps) == 1
        assert number(optimizer.iterations) == 3
        found.append(numbers(trained))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
