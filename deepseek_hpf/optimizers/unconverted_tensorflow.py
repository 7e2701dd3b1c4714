"""TensorFlow's mark for what AutoGraph is to call as it is."""

import tensorflow as tf

unconverted = tf.autograph.experimental.do_not_convert
