"""XLA plans the memory of a step when it compiles it, on every device."""

from typing import Any

import jax
import keras

from deepseek_hpf.memory.meter import Meter, NotTold, Step
from deepseek_hpf.tuning.training_step import on_device


class PlannedMeter:
    """Reads the plan of the compiled step; nothing is run."""

    def peak(self, model: keras.Model, batch: Any, step: Step) -> int | None:
        """Returns arguments, results and temporary values; a result in an argument's place once."""
        if not model.jit_compile:
            return None
        state = model._get_jax_state(
            trainable_variables=True,
            non_trainable_variables=True,
            optimizer_variables=True,
            metrics_variables=True,
        )
        # Of the same function object and arguments JAX has the compiled program already.
        compiled = (
            jax.jit(model.train_step, donate_argnums=0).lower(state, on_device(batch)).compile()
        )
        plan = compiled.memory_analysis()
        if plan is None:
            return None
        return int(
            plan.argument_size_in_bytes
            + plan.output_size_in_bytes
            - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes
        )


def meter() -> Meter:
    """Returns a meter; under a distribution, whose programs are of many devices, none."""
    return NotTold() if keras.distribution.distribution() is not None else PlannedMeter()
