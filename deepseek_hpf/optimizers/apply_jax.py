"""Runs a step under JAX outside of `stateless_apply`, as a loop of one's own may."""

from deepseek_hpf.optimizers.apply_to_values import apply_to_values
from deepseek_hpf.optimizers.step import Step


def apply(step: Step) -> None:
    """Updates or skips: takes the variables' values, and assigns the new ones."""
    optimizer = step.optimizer
    trainable, own = optimizer._trainable_variables, optimizer.variables
    updated = apply_to_values(step, [v.value for v in own], [v.value for v in trainable])
    for variable, value in zip([*trainable, *own], [*updated[0], *updated[1]], strict=True):
        variable.assign(value)
