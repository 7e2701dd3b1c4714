"""Gradient clipping by the configuration, in place, for the parameters of one optimizer.

The rules are those of `deepseek_hpf.clipping`, which explains them. A unit of `adaptive` clipping
is an index of the first axis, which PyTorch keeps for outputs.
"""

from collections.abc import Sequence

import numpy as np
import torch

from deepseek_hpf import config as configuration
from deepseek_hpf.optimizers.anomaly_rule import INITIAL_STATE, AnomalyRule
from deepseek_hpf.torch.gradients import values_of

LEAST_WEIGHT_NORM = 1e-3  # `deepseek_hpf.clipping.Adaptive`'s `epsilon`.


class NoClipping:
    """Leaves the gradients as they are; base of the rules."""

    def __init__(self) -> None:
        self.state: dict[str, float] = {}

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> bool:
        """Makes finite gradients smaller where the rule says so.

        Args:
            parameters: Each has a gradient; sparse ones are coalesced.
            norm: Global norm of the gradients.

        Returns:
            Whether a gradient was made smaller.
        """
        return False


class GlobalNorm(NoClipping):
    """`g <- g / max(1, norm / max_norm)`."""

    def __init__(self, config: configuration.GlobalNormConfig):
        super().__init__()
        self._max_norm = config.max_norm

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> bool:
        """Divides all gradients by one number."""
        return _shrink(parameters, norm, self._max_norm)


class Anomaly(NoClipping):
    """Cuts a norm that is an outlier of the optimizer's own running statistics."""

    def __init__(self, config: configuration.AnomalyConfig):
        super().__init__()
        self.state = dict(INITIAL_STATE)
        self._rule = AnomalyRule(z=config.z)

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> bool:
        """Divides all gradients by one number, and updates the statistics."""
        bound, updated = self._rule.compare(np, norm, self.state)
        self.state = {name: float(value) for name, value in updated.items()}
        return _shrink(parameters, norm, float(bound))


class Value(NoClipping):
    """Cuts each number of a gradient to `[-limit, limit]`."""

    def __init__(self, config: configuration.ValueConfig):
        super().__init__()
        self._limit = config.limit

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> bool:
        """Cuts each number."""
        values = [values_of(parameter.grad) for parameter in parameters]
        beyond = [(value.abs() > self._limit).any() for value in values]
        for value in values:
            value.clamp_(-self._limit, self._limit)
        return any(map(bool, beyond))


class Adaptive(NoClipping):
    """Limits each unit's gradient norm to `ratio` times the norm of its weights."""

    def __init__(self, config: configuration.AdaptiveConfig):
        super().__init__()
        self._ratio = config.ratio

    def clip(self, parameters: Sequence[torch.nn.Parameter], norm: float) -> bool:
        """Divides each unit by a number of its own."""
        clipped = [self._clip_units(parameter) for parameter in parameters]
        return any(map(bool, clipped))

    def _clip_units(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        gradient, weight = parameter.grad, parameter.detach()
        if gradient.is_sparse:
            weight = weight[tuple(gradient.indices())]
        values = values_of(gradient)
        allowed = _unit_norm(values_of(weight)).clamp(min=LEAST_WEIGHT_NORM) * self._ratio
        excess = _unit_norm(values) / allowed
        values.div_(excess.clamp(min=1.0))
        return (excess > 1.0).any()


RULES = {
    configuration.GlobalNormConfig: GlobalNorm,
    configuration.ValueConfig: Value,
    configuration.AdaptiveConfig: Adaptive,
    configuration.AnomalyConfig: Anomaly,
}


def create_clipping(config: configuration.Clipping | None) -> NoClipping:
    """Makes the rule that the section `clipping` of a configuration describes."""
    return NoClipping() if config is None else RULES[type(config)](config)


def _shrink(parameters: Sequence[torch.nn.Parameter], norm: float, bound: float) -> bool:
    if norm > bound:
        torch._foreach_div_([values_of(p.grad) for p in parameters], norm / bound)
    return norm > bound


def _unit_norm(values: torch.Tensor) -> torch.Tensor:
    """Norm over all axes but the first, axes kept; scaled, so that no square overflows."""
    wide = values if values.dtype == torch.float64 else values.float()
    axes = tuple(range(1, wide.ndim)) if wide.ndim > 1 else tuple(range(wide.ndim))
    largest = torch.linalg.vector_norm(wide, float("inf"), dim=axes, keepdim=True)
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * torch.linalg.vector_norm(wide / unit, dim=axes, keepdim=True)
