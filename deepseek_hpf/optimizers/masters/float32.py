"""FP32 masters: the optimizer works on float32 copies of low-precision variables.

An update smaller than half the spacing of bfloat16 or float16 numbers around a weight is lost when
it is added to the weight. Added to a float32 master it is kept, and the weight, the master's
rounded image, follows once enough has gathered.

A variable that no longer is its master's image has been assigned from outside (`load_weights`,
`set_weights`, a callback). The assignment wins: element by element, the master starts anew from
the variable wherever their bits disagree.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.masters.master import AddVariable, dtype_of, named
from deepseek_hpf.optimizers.masters.rounding import rounded

Tensor = Any

BITS = "int16"


class Float32Master:
    """A float32 copy of a variable.

    Args:
        variable: A float16 or bfloat16 variable.
        add_variable: The optimizer's `add_variable`, so that the master is among its variables.
        tracing: Whether this happens within a graph, where a value cannot be read: then the master
            starts at zero, and takes the variable's value at the first step, as after any
            assignment from outside.
    """

    def __init__(self, variable: keras.Variable, add_variable: AddVariable, *, tracing: bool):
        def value(shape: Sequence[int], dtype: Any = None) -> Tensor:
            return ops.cast(ops.convert_to_tensor(variable), dtype)

        self.variable = variable
        self.target = add_variable(
            shape=variable.shape,
            dtype="float32",
            initializer="zeros" if tracing else value,
            layout=getattr(variable, "_layout", None),
            name=named(variable, "master"),
        )
        self.target.constraint = variable.constraint

    def weights(self) -> Tensor:
        """Returns the master's value, taken from the variable where that is not its image.

        Bits are compared, not numbers: XLA may leave out the rounding of a number that it would
        widen again for the comparison, and then every rounded element would look assigned.
        """
        value = ops.convert_to_tensor(self.variable)
        image_bits = ops.view(rounded(self.target, dtype_of(self.variable)), BITS)
        unchanged = ops.equal(image_bits, ops.view(value, BITS))
        return ops.where(unchanged, ops.convert_to_tensor(self.target), ops.cast(value, "float32"))

    def begin(self, *, branches: bool) -> None:
        """Lets assignments to the variable win."""
        self.target.assign(self.weights())

    def end(self) -> None:
        """Rounds the master to the variable."""
        self.variable.assign(rounded(self.target, dtype_of(self.variable)))

    def take_over(self, value: Tensor) -> None:
        """Goes on from a value whose image the variable is."""
        self.target.assign(value)
