"""A layer's result and gradients, as they come, under TensorFlow."""

import tensorflow as tf


def outputs_and_gradients(layer, x, upstream=None, jit_compile=False):
    @tf.function(jit_compile=jit_compile)
    def run(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        weights = [w.value for w in layer.trainable_variables]
        return [y, *tape.gradient(y, [x, *weights], upstream)]

    x = tf.cast(x, layer.compute_dtype)
    y = tf.ones_like(layer(x)) if upstream is None else upstream
    return run(x, tf.cast(y, layer.compute_dtype))
