"""How the loss scale moves in a step that Keras compiles: `scale_rule` over Keras's `ops`."""

from typing import Any

from keras import ops

from deepseek_hpf.optimizers import scale_rule
from deepseek_hpf.optimizers.scale_rule import ScaleRules as ScaleRules
from deepseek_hpf.optimizers.scale_rule import ScaleState as ScaleState

Tensor = Any
"""A native tensor of the Keras back end, or a Python number."""


def bounded(scale: Tensor, rules: ScaleRules) -> Tensor:
    """Returns the scale within `[min_scale, max_scale]`; a NaN becomes `min_scale`."""
    return scale_rule.bounded(ops, ops.convert_to_tensor(scale), rules)


def after_finite(state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts a finite step; the `growth_steps`-th in a row grows the scale."""
    return scale_rule.after_finite(ops, _tensors(state), rules)


def after_overflow(state: ScaleState, rules: ScaleRules) -> ScaleState:
    """Counts an overflow; from the `hysteresis`-th in a row on, each one backs off the scale."""
    return scale_rule.after_overflow(ops, _tensors(state), rules)


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


def _tensors(state: ScaleState) -> ScaleState:
    return state._replace(scale=ops.convert_to_tensor(state.scale))
