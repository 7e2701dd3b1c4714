"""Sums of squares for JAX: XLA fuses the square into the sum."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def sum_of_squares(tensors: Sequence[jax.Array]) -> jax.Array:
    """Returns the sum of the squares of all elements of the tensors, which share one dtype."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(tensor)) for tensor in tensors]))


def dense(gradient: Any) -> jax.Array:
    """Returns the gradient as a plain tensor; rows that are given twice are added."""
    return gradient.todense() if hasattr(gradient, "todense") else gradient
