"""How the loss-scale optimizer takes gradients: matched to its variables, then one step."""

import importlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.apply_to_values import apply_to_values
from deepseek_hpf.optimizers.optimizer_part import OptimizerPart
from deepseek_hpf.optimizers.step import Step
from deepseek_hpf.optimizers.unconverted import unconverted

Tensor = Any


class TakesSteps(OptimizerPart):
    """Part of an optimizer: `apply`, and the same as a function of values."""

    @unconverted
    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Updates the variables, or skips the step if a gradient is not finite.

        Args:
            grads: Gradients of the scaled loss; None where there is none. Sparse ones are welcome.
            trainable_variables: The variables they belong to; by default all that the optimizer
                was built with. Needed at the first call, which builds.

        Raises:
            ValueError: All gradients are None, or they do not match the variables.
        """
        gradients = [_tensor(gradient) for gradient in grads]
        if not gradients:
            return
        if not self.built and trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            with keras.name_scope(self.name, caller=self):
                self.build(trainable_variables)
        step = Step(self, gradients, self._matching(gradients, trainable_variables))
        backend = keras.backend.backend()
        importlib.import_module(f"deepseek_hpf.optimizers.apply_{backend}").apply(step)

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`apply` as a function of values, which JAX needs.

        Args:
            optimizer_variables: Values of `self.variables`.
            grads: Gradients of the scaled loss, one for each variable; None where there is none.
            trainable_variables: Values of the variables the optimizer was built with.

        Returns:
            New values of the trainable variables, and of the optimizer's variables.
        """
        base: Any = super(keras.optimizers.LossScaleOptimizer, self)
        lengths = (len(self.variables), len(getattr(self, "_trainable_variables", ())))
        agree = lengths == (len(optimizer_variables), len(trainable_variables))
        if keras.backend.backend() == "tensorflow" or not self.built or not agree:
            # Keras's own refusals.
            return base.stateless_apply(optimizer_variables, grads, trainable_variables)
        gradients = [_tensor(gradient) for gradient in grads]
        step = Step(self, gradients, self._matching(gradients, None))
        return apply_to_values(step, optimizer_variables, trainable_variables)

    def _matching(
        self, gradients: Sequence[Tensor | None], variables: Sequence[keras.Variable] | None
    ) -> list[keras.Variable]:
        """The variables that the gradients belong to; refuses as the base optimizer does."""
        if variables is None and not self.built:
            raise ValueError(
                "When passing `grads` without `variables`, the optimizer must already be built on "
                "a list of variables. Call `optimizer.build(trainable_variables)` first."
            )
        if variables is not None:
            self._check_variables_are_known(variables)
        known = self._trainable_variables if variables is None else list(variables)
        if len(gradients) != len(known):
            raise ValueError(
                "The gradients must match the variables one to one. Received a list of "
                f"{len(gradients)} gradients for {len(known)} trainable variables."
            )
        if all(gradient is None for gradient in gradients):
            raise ValueError("No gradients provided for any variable.")
        return known


def _tensor(gradient: Tensor | None) -> Tensor | None:
    if gradient is None or ops.is_tensor(gradient) or hasattr(gradient, "indices"):
        return gradient
    return ops.convert_to_tensor(gradient)
