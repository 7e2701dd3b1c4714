"""Sums of squares for JAX: XLA fuses the square into the sum."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def sum_of_squares(tensors: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of the squares of all elements of the tensors, which share one dtype."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in tensors]))
