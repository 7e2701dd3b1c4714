"""How the loss scale moves: a pure function of the last state and one bit, "were they finite"."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from keras import ops

from deepseek_hpf.config import LossScaleConfig

Tensor = Any
"""A native tensor of the Keras back end, or a Python number."""


@dataclass(frozen=True, kw_only=True)
class ScaleRules:
    """The constants of the transition; `LossScaleConfig` explains and validates them."""

    growth_steps: int = 2000
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    min_scale: float = 1.0
    max_scale: float = 2.0**24
    hysteresis: int = 1

    @classmethod
    def from_config(cls, config: LossScaleConfig) -> "ScaleRules":
        """Takes the constants from a validated configuration."""
        values = config.model_dump()
        values.pop("initial_scale")
        return cls(**values)


class ScaleState(NamedTuple):
    """What the transition carries from step to step.

    Attributes:
        scale: Factor on the loss, float32.
        good_steps: Finite steps since the scale last moved or a step overflowed, integer.
        overflows: Overflows in a row, integer.
    """

    scale: Tensor
    good_steps: Tensor
    overflows: Tensor


def bounded(scale: Tensor, rules: ScaleRules) -> Tensor:
    """Returns the scale within `[min_scale, max_scale]`.

    A NaN, which only an assignment from outside can bring, becomes `min_scale`: a comparison with
    NaN is false.
    """
    scale = ops.convert_to_tensor(scale)
    raised = ops.where(ops.greater_equal(scale, rules.min_scale), scale, rules.min_scale)
    return ops.minimum(raised, rules.max_scale)


def after_finite(state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts a finite step; the `growth_steps`-th in a row grows the scale."""
    scale = bounded(state.scale, rules)
    good_steps = ops.add(state.good_steps, 1)
    due = ops.greater_equal(good_steps, rules.growth_steps)
    grown = bounded(ops.multiply(scale, rules.growth_factor), rules)
    return ScaleState(
        scale=ops.where(due, grown, scale),
        good_steps=ops.where(due, ops.zeros_like(good_steps), good_steps),
        overflows=ops.zeros_like(state.overflows),
    )


def after_overflow(state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts an overflow; from the `hysteresis`-th in a row on, each one backs off the scale."""
    scale = bounded(state.scale, rules)
    overflows = ops.add(state.overflows, 1)
    backs_off = ops.greater_equal(overflows, rules.hysteresis)
    smaller = bounded(ops.multiply(scale, rules.backoff_factor), rules)
    return ScaleState(
        scale=ops.where(backs_off, smaller, scale),
        good_steps=ops.zeros_like(state.good_steps),
        overflows=overflows,
    )


def advance(state: ScaleState, finite: Tensor, rules: ScaleRules) -> ScaleState:
    """Returns the state after one step.

    ```
    finite:   good_steps += 1; overflows = 0
              at growth_steps: scale *= growth_factor, good_steps = 0
    overflow: overflows += 1; good_steps = 0
              from hysteresis on: scale *= backoff_factor
    always:   min_scale <= scale <= max_scale
    ```

    Args:
        state: The state before the step.
        finite: Boolean scalar: every gradient of the step was finite.
        rules: The constants.

    Returns:
        The state after the step. Where both outcomes are known apart, as in the branches of a
        compiled step, `after_finite` and `after_overflow` are its two halves.

    Example:
        >>> from deepseek_hpf.optimizers.transition import ScaleRules, ScaleState, advance
        >>> rules = ScaleRules(growth_steps=2)
        >>> state = ScaleState(scale=8.0, good_steps=0, overflows=0)
        >>> for finite in (True, True, False):
        ...     state = advance(state, finite, rules)
        ...     print(float(state.scale), int(state.good_steps))
        8.0 1
        16.0 0
        8.0 0

    References:
        - [Mixed Precision Training](https://arxiv.org/abs/1710.03740), section 3.2
    """
    finite_state, overflow_state = after_finite(state, rules), after_overflow(state, rules)
    pairs = zip(finite_state, overflow_state, strict=True)
    return ScaleState(*(ops.where(finite, good, bad) for good, bad in pairs))
