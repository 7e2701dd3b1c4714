"""How the loss scale moves, for any array library: Keras's `ops` in a compiled step, or NumPy.

The functions take the library's namespace first (`xp`), use the few functions that all of them
have, and import none: `transition` binds them to Keras, `deepseek_hpf.torch` to NumPy.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from deepseek_hpf.config import LossScaleConfig

Tensor = Any
"""A tensor of the library, or a Python number."""


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


def bounded(xp: ModuleType, scale: Tensor, rules: ScaleRules) -> Tensor:
    """Returns the scale within `[min_scale, max_scale]`.

    A NaN, which only an assignment from outside can bring, becomes `min_scale`: a comparison with
    NaN is false.
    """
    raised = xp.where(xp.greater_equal(scale, rules.min_scale), scale, rules.min_scale)
    return xp.minimum(raised, rules.max_scale)


def after_finite(xp: ModuleType, state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts a finite step; the `growth_steps`-th in a row grows the scale."""
    scale = bounded(xp, state.scale, rules)
    good_steps = xp.add(state.good_steps, 1)
    due = xp.greater_equal(good_steps, rules.growth_steps)
    grown = bounded(xp, xp.multiply(scale, rules.growth_factor), rules)
    return ScaleState(
        scale=xp.where(due, grown, scale),
        good_steps=xp.where(due, xp.zeros_like(good_steps), good_steps),
        overflows=xp.zeros_like(state.overflows),
    )


def after_overflow(xp: ModuleType, state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts an overflow; from the `hysteresis`-th in a row on, each one backs off the scale."""
    scale = bounded(xp, state.scale, rules)
    overflows = xp.add(state.overflows, 1)
    backs_off = xp.greater_equal(overflows, rules.hysteresis)
    smaller = bounded(xp, xp.multiply(scale, rules.backoff_factor), rules)
    return ScaleState(
        scale=xp.where(backs_off, smaller, scale),
        good_steps=xp.zeros_like(state.good_steps),
        overflows=overflows,
    )
