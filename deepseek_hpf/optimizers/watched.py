"""How the loss-scale optimizer comes to have its gradients watched."""

import contextlib

import keras

from deepseek_hpf.optimizers.gradient_watch import DtypeOf, GradientWatch
from deepseek_hpf.optimizers.optimizer_part import OptimizerPart


class Watched(OptimizerPart):
    """Part of an optimizer: what measures its gradients and updates."""

    def watch_gradients(
        self, every: int = 50, sample_every: int = 25, compute_dtype_of: DtypeOf | None = None
    ) -> GradientWatch:
        """Has gradients and updates measured in the steps that are traced from now on.

        It changes no bit of the training. What is measured is among the optimizer's variables, at
        the end of what is saved; files without it load as before.

        Args:
            every: Int. Steps of a window.
            sample_every: Int. Of how many steps one is measured. Skipped steps are counted always.
            compute_dtype_of: Function from a trainable variable to the name of the dtype that its
                layer computes in. By default the dtype of the variable.

        Returns:
            The watch, whose `last_window` is to be read.
        """
        watch = GradientWatch(every, sample_every, compute_dtype_of or _own_dtype)
        if self.watch.variables:
            watch.adopt(self.watch)
        elif self.built:
            strategy = getattr(self, "_distribution_strategy", None)
            with contextlib.nullcontext() if strategy is None else strategy.scope():
                watch.build(self, self._trainable_variables)
            watch.load(self.__dict__.pop("_left_over", ()))
        self.__dict__["watch"] = watch
        return watch


def _own_dtype(variable: keras.Variable) -> str:
    return str(keras.backend.standardize_dtype(variable.dtype))
