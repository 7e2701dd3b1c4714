import numpy as np
import pytest
import tensorflow as tf

from deepseek_hpf.adapters.kernels.bias_tensorflow import add_bias

pytestmark = pytest.mark.backend("tensorflow")
RNG = np.random.default_rng()


@pytest.mark.parametrize("shape", [(7, 5), (64, 4, 4, 16), (1, 1), (0, 3)])
def test_the_gradient_of_a_bfloat16_bias_is_rounded_once(shape):
    outputs = tf.cast(RNG.standard_normal(shape), "bfloat16")
    bias = tf.cast(RNG.standard_normal(shape[-1]), "bfloat16")
    upstream = tf.cast(RNG.random(shape) + 0.5, "bfloat16")
    with tf.GradientTape() as tape:
        tape.watch([outputs, bias])
        y = add_bias(outputs, bias)
    of_outputs, of_bias = tape.gradient(y, [outputs, bias], output_gradients=upstream)
    np.testing.assert_array_equal(tf.cast(of_outputs, "float32"), tf.cast(upstream, "float32"))
    exact = np.asarray(tf.cast(upstream, "float64")).reshape(-1, shape[-1]).sum(0)
    np.testing.assert_allclose(tf.cast(of_bias, "float64"), exact, rtol=2.0**-8, atol=0)
