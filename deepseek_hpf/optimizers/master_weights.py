"""FP32 masters: the optimizer works on float32 copies of low-precision variables.

An update smaller than half the spacing of bfloat16 or float16 numbers around a weight is lost when
it is added to the weight. Added to a float32 master it is kept, and the weight, the master's
rounded image, follows once enough has gathered.

A variable that no longer is its master's image has been assigned from outside (`load_weights`,
`set_weights`, a callback). The assignment wins: element by element, the master starts anew from
the variable wherever their bits disagree.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any

BITS = {"float16": "int16", "bfloat16": "int16"}


def needs_master(variable: keras.Variable) -> bool:
    """Returns whether a variable is of low precision and trained by adding to it.

    float32 and float64 variables are their own masters; what is overwritten with its gradient (the
    scales of float8 layers) has no update that could be lost.
    """
    overwritten = getattr(variable, "overwrite_with_gradient", False)
    return keras.backend.standardize_dtype(variable.dtype) in BITS and not overwritten


def create_master(
    variable: keras.Variable, add_variable: Callable[..., keras.Variable], *, tracing: bool
) -> keras.Variable:
    """Creates the float32 master of a variable.

    Args:
        variable: A float16 or bfloat16 variable.
        add_variable: The optimizer's `add_variable`, so that the master is among its variables.
        tracing: Whether this happens within a graph, where a value cannot be read: then the master
            starts at zero, and takes the variable's value at the first step, as after any
            assignment from outside.

    Returns:
        The master. It holds the variable's value and carries its constraint.
    """

    def value(shape: Sequence[int], dtype: Any = None) -> Tensor:
        return ops.cast(ops.convert_to_tensor(variable), dtype)

    master = add_variable(
        shape=variable.shape,
        dtype="float32",
        initializer="zeros" if tracing else value,
        layout=getattr(variable, "_layout", None),
        name=f"{variable.path.replace('/', '_')}_master",
    )
    master.constraint = variable.constraint
    return master


def rounded(master: Tensor, dtype: str) -> Tensor:
    """Returns the image of a master: its value rounded to `dtype`."""
    return ops.cast(ops.convert_to_tensor(master), dtype)


def refreshed(master: keras.Variable, variable: keras.Variable) -> Tensor:
    """Returns the master's value, taken from the variable where that is not the master's image.

    Bits are compared, not numbers: XLA may leave out the rounding of a number that it would widen
    again for the comparison, and then every rounded element would look assigned.
    """
    dtype = keras.backend.standardize_dtype(variable.dtype)
    value = ops.convert_to_tensor(variable)
    image_bits = ops.view(rounded(master, dtype), BITS[dtype])
    unchanged = ops.equal(image_bits, ops.view(value, BITS[dtype]))
    return ops.where(unchanged, ops.convert_to_tensor(master), ops.cast(value, "float32"))


def exclude_alike(
    inner_optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    targets: Sequence[keras.Variable],
) -> None:
    """Decays a master exactly if its variable would be, by `exclude_from_weight_decay`."""
    if inner_optimizer.weight_decay is None:
        return
    for variable, target in zip(variables, targets, strict=True):
        decays = inner_optimizer._use_weight_decay(variable)
        inner_optimizer._exclude_from_weight_decay_cache[inner_optimizer._var_key(target)] = decays
