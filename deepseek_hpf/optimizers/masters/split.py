"""Masters in split form: a bfloat16 weight, and the 16 bits that float32 has beyond it.

Weight and master together take 4 bytes a parameter, where a float32 master beside its weight takes
6, and training is the same, bit by bit.

All 2^32 pairs of an image and its lower bits are in use, so nothing tells that a weight has been
assigned from outside. Its lower bits stay as they are. The assignment wins all the same, element by
element: the master rounds to what was assigned, and is less than half the spacing of bfloat16
numbers away from it, as any master is from its weight.

References:
    - [Split-SGD-BF16](https://arxiv.org/abs/2005.04680), which cuts the lower bits off the weight
      where this rounds
"""

from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.masters.composed_variable import ComposedVariable
from deepseek_hpf.optimizers.masters.master import AddVariable, named
from deepseek_hpf.optimizers.masters.rounding import joined, parted

Tensor = Any


class SplitVariable(ComposedVariable):
    """A float32 variable kept as its bfloat16 image and its lower 16 bits.

    Args:
        variable: The image, a bfloat16 variable of the model.
        low: The lower bits, an int16 variable of the optimizer.
    """

    def __init__(self, variable: keras.Variable, low: keras.Variable):
        self.low = low
        super().__init__(variable, named(variable, "master"))

    def load(self) -> Tensor:
        """Joins image and lower bits."""
        return joined(self.image, self.low)

    def store(self, value: Tensor) -> None:
        """Parts a value into image and lower bits."""
        image, low = parted(value)
        self.image.assign(image)
        self.low.assign(low)


class SplitMaster:
    """The master of a bfloat16 variable, in split form.

    Args:
        variable: A bfloat16 variable.
        add_variable: The optimizer's `add_variable`, so that the lower bits are among its
            variables.
    """

    def __init__(self, variable: keras.Variable, add_variable: AddVariable):
        low = add_variable(
            shape=variable.shape,
            dtype="int16",
            initializer="zeros",
            layout=getattr(variable, "_layout", None),
            name=named(variable, "master_low"),
        )
        self.variable = variable
        self.target = SplitVariable(variable, low)

    def weights(self) -> Tensor:
        """Returns the master."""
        return ops.convert_to_tensor(self.target.current)

    def begin(self, *, branches: bool) -> None:
        """Composes the master, once for the whole update where no branch forbids it."""
        if not branches:
            self.target.hold()

    def end(self) -> None:
        """Parts the master."""
        self.target.release()

    def take_over(self, value: Tensor) -> None:
        """Goes on from a master."""
        self.target.assign(value)
