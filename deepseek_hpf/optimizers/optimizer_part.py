"""What the parts that make up the loss-scale optimizer may count on."""

from typing import TYPE_CHECKING, Any

import keras

if TYPE_CHECKING:
    _Optimizer: Any = keras.optimizers.LossScaleOptimizer
else:
    _Optimizer = object


class OptimizerPart(_Optimizer):
    """Base of a part: a class that is one of several bases of a `keras.optimizers` class.

    Its methods come before those of Keras, which `super()` reaches.
    """
