"""Sums of squares for TensorFlow: `l2_loss` reads a tensor once and stores nothing between."""

from collections.abc import Sequence

import tensorflow as tf


def sum_of_squares(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the sum of the squares of all elements of the tensors, which share one dtype."""
    return 2.0 * tf.add_n([tf.nn.l2_loss(tensor) for tensor in tensors])


def dense(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    """Returns the gradient as a plain tensor; rows that are given twice are added."""
    return tf.convert_to_tensor(gradient)
