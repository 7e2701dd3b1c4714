"""What a window of training steps says about each part of a model. Pure values."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Self

Cause = Literal["loss_scale", "activation", "accumulation", "data", "unknown"]
Phase = Literal["forward", "loss", "backward"]


@dataclass(frozen=True, kw_only=True)
class GradientStatistics:
    """Gradients and updates of one variable, one layer or one block, over a window of steps.

    Args:
        elements: Numbers in it.
        gradient_norm: L2 norm of the unscaled gradient, mean over the steps.
        largest: Largest magnitude of a number of the unscaled gradient.
        nonfinite: Numbers of the gradient that were inf or NaN, over all skipped steps.
        underflow: Share of the (scaled) gradient's numbers that are zero or below the smallest
            normal number of the compute dtype, 0 to 1.
        update_norm: L2 norm of the change of the weights by an update, mean over the updates.
        weight_norm: L2 norm of the weights, mean over the updates.
        lost_updates: Share of the weights with a gradient which an update left as they were,
            because it was lost in rounding, 0 to 1.

    Example:
        >>> from deepseek_hpf.scheduling.telemetry import GradientStatistics
        >>> kernel = GradientStatistics(elements=6, gradient_norm=3.0, underflow=0.5)
        >>> bias = GradientStatistics(elements=2, gradient_norm=4.0)
        >>> layer = GradientStatistics.combined([kernel, bias])
        >>> layer.elements, layer.gradient_norm, layer.underflow
        (8, 5.0, 0.375)
    """

    elements: int
    gradient_norm: float = 0.0
    largest: float = 0.0
    nonfinite: int = 0
    underflow: float = 0.0
    update_norm: float = 0.0
    weight_norm: float = 0.0
    lost_updates: float = 0.0

    @property
    def update_ratio(self) -> float:
        """Length of an update relative to the weights; 0 where the weights are 0."""
        return self.update_norm / self.weight_norm if self.weight_norm else 0.0

    @classmethod
    def combined(cls, parts: Iterable[Self]) -> Self:
        """Takes several parts as one.

        Args:
            parts: Statistics of the same window.

        Returns:
            Their statistics together: norms as of one long vector, shares by elements.
        """
        parts = tuple(parts)
        elements = sum(part.elements for part in parts)

        def norm(name: str) -> float:
            return math.hypot(*(getattr(part, name) for part in parts))

        def share(name: str) -> float:
            total = sum(getattr(part, name) * part.elements for part in parts)
            return total / elements if elements else 0.0

        return cls(
            elements=elements,
            gradient_norm=norm("gradient_norm"),
            largest=max((part.largest for part in parts), default=0.0),
            nonfinite=sum(part.nonfinite for part in parts),
            underflow=share("underflow"),
            update_norm=norm("update_norm"),
            weight_norm=norm("weight_norm"),
            lost_updates=share("lost_updates"),
        )


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A skipped step, and what was found to have caused it.

    Args:
        step: Number of the step, from 0.
        cause: `"loss_scale"`: finite with a smaller scale; `"activation"`: at any scale;
            `"accumulation"`: the step's own gradients were finite, and what the update would go by
            was not: their sum with those of the steps before, or the gradient without its scale in
            the dtype of its weight; `"data"`: the batch itself was not finite, and no layer is to
            blame; `"unknown"`: it did not happen again when the step was run once more.
        layer: Path of the layer that first produced an inf or NaN; None where none is to blame.
        scale: Loss scale of that step; None without scaling.
        phase: Where the inf or NaN first was: in a layer's result, in the loss or its gradient, or
            in a gradient of a layer; None where that is not known.
        samples: Positions in the batch of the samples that were not finite, from 0, in order.

    Example:
        >>> from deepseek_hpf.scheduling.telemetry import Overflow
        >>> Overflow(step=7, cause="activation", layer="stem", phase="forward").layer
        'stem'
    """

    step: int
    cause: Cause
    layer: str | None = None
    scale: float | None = None
    phase: Phase | None = None
    samples: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """One read-out: what a window of steps says.

    Args:
        step: Steps trained so far, which is the number of the next one.
        steps: Steps that the window covers.
        epoch: Epoch of the next step, from 0.
        skipped: Steps of the window that were skipped.
        scale: The loss scale now; None without scaling.
        layers: Path of a layer to name of its variable to what was measured.
        overflows: What skipped steps were found to be caused by.
        loss: Mean loss of the window; None where it is not known.
        step_seconds: Mean time of a step in seconds; None where it is not known.

    Example:
        >>> from deepseek_hpf.scheduling.telemetry import GradientStatistics, Telemetry
        >>> kernel = GradientStatistics(elements=6, gradient_norm=3.0)
        >>> read = Telemetry(step=50, steps=50, layers={"stem": {"kernel": kernel}})
        >>> read.of(["stem", "head"]).gradient_norm
        3.0
    """

    step: int
    steps: int
    epoch: int = 0
    skipped: int = 0
    scale: float | None = None
    layers: Mapping[str, Mapping[str, GradientStatistics]] = field(default_factory=dict)
    overflows: tuple[Overflow, ...] = ()
    loss: float | None = None
    step_seconds: float | None = None

    def __post_init__(self) -> None:
        frozen = {path: MappingProxyType(dict(own)) for path, own in self.layers.items()}
        object.__setattr__(self, "layers", MappingProxyType(frozen))

    def of(self, paths: Iterable[str]) -> GradientStatistics:
        """Takes some layers as one.

        Args:
            paths: Paths of layers; those without variables count for nothing.

        Returns:
            The statistics of all their variables together.
        """
        own = (self.layers.get(path, {}) for path in paths)
        return GradientStatistics.combined(part for layer in own for part in layer.values())
