"""Adam and AdamW whose moments take 8 bits a value, for Keras on any back end."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers import finite
from deepseek_hpf.optimizers.block_code import BlockCode, PackedVariable
from deepseek_hpf.optimizers.optimizer_part import OptimizerPart

Tensor = Any


class MomentsIn8Bits(OptimizerPart):
    """Part of an Adam: where the moments of large variables are kept, and the step with them.

    Both moments are restored to float32, updated as Keras does, used, and packed again, so that
    packing changes what the next step starts from and not this step.
    """

    def __init__(self, *args: Any, block_size: int = 256, min_8bit_size: int = 4096, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.amsgrad:
            raise ConfigError(
                "The largest second moment, which `amsgrad` keeps, is not stored in 8 bits. Use "
                "`keras.optimizers.Adam`, or leave it out. Received: amsgrad=True"
            )
        self.block_size = _count("block_size", block_size, least=1)
        self.min_8bit_size = _count("min_8bit_size", min_8bit_size, least=0)

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Creates the moments.

        Args:
            var_list: The variables to be trained.
        """
        if self.built:
            return
        # Past Adam's, which would create float32 moments.
        super(keras.optimizers.Adam, self).build(var_list)
        pairs = [self._moments(variable) for variable in var_list]
        # In `__dict__` directly: TensorFlow would wrap and track a list set as an attribute.
        self.__dict__["_momentums"] = [first for first, _ in pairs]
        self.__dict__["_velocities"] = [second for _, second in pairs]

    def _moments(self, variable: keras.Variable) -> tuple[Any, Any]:
        if self._overwrite_variable_with_gradient(variable):
            return None, None
        names = ("momentum", "velocity")
        if math.prod(variable.shape) < self.min_8bit_size:
            first, second = (self.add_variable_from_reference(variable, name=n) for n in names)
            return first, second
        first, second = (
            PackedVariable(
                BlockCode(self.block_size, signed=name == "momentum"),
                variable.shape,
                self.add_variable,
                f"{variable.path.replace('/', '_')}_{name}",
            )
            for name in names
        )
        return first, second

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Any) -> None:
        """Updates one variable.

        Args:
            gradient: Its gradient.
            variable: The variable.
            learning_rate: Of this step.
        """
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        if not isinstance(first, PackedVariable):
            super().update_step(gradient, variable, learning_rate)
            return
        gradient = ops.reshape(ops.cast(finite.dense(gradient), "float32"), first.shape)
        m, v = first.read(), second.read()
        m = ops.add(m, ops.multiply(ops.subtract(gradient, m), 1.0 - self.beta_1))
        v = ops.add(v, ops.multiply(ops.subtract(ops.square(gradient), v), 1.0 - self.beta_2))
        step = ops.divide(
            ops.multiply(m, self._rate(learning_rate)), ops.add(ops.sqrt(v), self.epsilon)
        )
        first.write(m, self.assign)
        second.write(v, self.assign)
        self.assign_sub(variable, ops.cast(step, variable.dtype))

    def _rate(self, learning_rate: Any) -> Tensor:
        """The learning rate, corrected for moments that started at zero."""
        steps = ops.cast(ops.add(self.iterations, 1), "float32")
        betas = [ops.cast(beta, "float32") for beta in (self.beta_1, self.beta_2)]
        first, second = (ops.subtract(1.0, ops.power(beta, steps)) for beta in betas)
        return ops.divide(ops.multiply(ops.cast(learning_rate, "float32"), ops.sqrt(second)), first)

    def get_config(self) -> dict[str, Any]:
        """Returns the config of Keras's class, and the two arguments beyond it."""
        own = {"block_size": self.block_size, "min_8bit_size": self.min_8bit_size}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="deepseek_hpf")
class Adam8bit(MomentsIn8Bits, keras.optimizers.Adam):
    """`keras.optimizers.Adam` with 8-bit moments: 2 bytes a parameter instead of 8.

    Moments are kept block by block: a code of 8 bits for each value and the largest magnitude of
    each block. Those of small variables, such as biases and normalizations, stay as Keras keeps
    them. On every back end, compiled or not, inside of `LossScaleOptimizer` and alone.

    Args:
        *args: As for `keras.optimizers.Adam`.
        block_size: Int. Values in a block; what one outlier may coarsen.
        min_8bit_size: Int. Variables of fewer values keep their moments as Keras does.
        **kwargs: As for `keras.optimizers.Adam`, without `amsgrad`.

    Raises:
        ConfigError: `amsgrad` is wanted, or a size is no positive integer.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from deepseek_hpf.optimizers import Adam8bit
        >>> optimizer = Adam8bit(1e-3)
        >>> optimizer.build([keras.Variable(np.zeros((64, 64), "float32"), name="kernel")])
        >>> moments = optimizer.variables[2:]
        >>> sum(np.asarray(moment).nbytes for moment in moments) / 4096
        2.03125

    References:
        - [8-bit Optimizers via Block-wise Quantization](https://arxiv.org/abs/2110.02861)
    """


@keras.saving.register_keras_serializable(package="deepseek_hpf")
class AdamW8bit(MomentsIn8Bits, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with 8-bit moments; see `Adam8bit`.

    Args:
        *args: As for `keras.optimizers.AdamW`.
        block_size: Int. Values in a block.
        min_8bit_size: Int. Variables of fewer values keep their moments as Keras does.
        **kwargs: As for `keras.optimizers.AdamW`, without `amsgrad`.

    Raises:
        ConfigError: `amsgrad` is wanted, or a size is no positive integer.

    Example:
        >>> from deepseek_hpf.optimizers import AdamW8bit
        >>> AdamW8bit(1e-3, weight_decay=0.01).get_config()["min_8bit_size"]
        4096
    """


def _count(name: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"Argument `{name}` must be an integer of at least {least}. Received: {name}={value!r} "
            f"(of type {type(value).__name__})"
        )
    return value
