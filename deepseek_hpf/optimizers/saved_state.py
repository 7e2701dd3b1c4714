"""The state of the loss-scale optimizer in files: its own, and those of Keras's wrapper."""

from typing import Any

import numpy as np

from deepseek_hpf.optimizers.optimizer_part import OptimizerPart
from deepseek_hpf.optimizers.saved_order import fitting, saved_order
from deepseek_hpf.optimizers.tracing import outside_of_graphs
from deepseek_hpf.optimizers.transition import bounded

Store = Any


class SavesState(OptimizerPart):
    """Part of an optimizer: how its variables are saved and loaded."""

    _pending_variables: list[Any] | None

    def save_own_variables(self, store: Store) -> None:
        """Writes the state to a file."""
        for index, variable in enumerate(saved_order(self.variables, self.watch.variables)):
            store[str(index)] = variable.numpy()

    def load_own_variables(self, store: Store) -> None:
        """Sets the state from a file, of this class or of Keras's wrapper.

        Before `build`, the values are kept and set once the variables exist.
        """
        values = [np.asarray(store[str(i)]) for i in range(len(store.keys()))]
        if not self.built:
            self.__dict__["_pending_variables"] = values
            return
        watched, inner = self.watch.variables, self.inner_optimizer.variables
        layout = fitting(saved_order(self.variables, watched), inner, watched, len(values))
        if layout is None:
            super().load_own_variables(store)  # warns, and loads nothing
            return
        for variable, value in zip(layout, values, strict=False):
            variable.assign(value)
        if not watched:
            self.__dict__["_left_over"] = values[len(layout) :]
        scale = bounded(self.dynamic_scale, self.scale_rules) if self.scales_loss else 1.0
        self.dynamic_scale.assign(scale)

    def assign_pending(self) -> None:
        """Sets the state that was loaded before `build`, where there is any."""
        if self._pending_variables is None:
            return
        store = {str(i): value for i, value in enumerate(self._pending_variables)}
        self._pending_variables = None
        with outside_of_graphs():
            self.load_own_variables(store)
