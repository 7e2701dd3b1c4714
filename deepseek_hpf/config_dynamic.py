"""The section "dynamic" of the configuration: which controller, and its settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from deepseek_hpf.config_numbers import INT32_MAX, Count, Positive, Share
from deepseek_hpf.config_section import ConfigSection
from deepseek_hpf.config_wording import expects

ControllerName = Literal["static", "schedule", "threshold", "adaptive"]
# A built variable keeps its dtype, so a phase can only ask for one that keeps float32 weights.
PhasePolicy = Literal["float32", "mixed_float16", "mixed_bfloat16"]
When = Annotated[int, Field(ge=0, le=INT32_MAX)]

_OWN_SETTINGS = {
    "schedule": ("schedule",),
    "threshold": ("outlier_z", "underflow", "lost_updates", "calm_steps"),
    "adaptive": ("exploration", "seed"),
}


class SchedulePhase(ConfigSection):
    """A part of the training with a precision of its own, from a step or an epoch on."""

    step: When | None = None
    """First step of the phase, from 0."""
    epoch: When | None = None
    """First epoch of the phase, from 0."""
    policy: PhasePolicy | None = None
    """Dtype policy of the layers that are low otherwise; null is what they have otherwise."""

    @model_validator(mode="after")
    def _begins_once(self) -> Self:
        if (self.step is None) == (self.epoch is None):
            given = "both" if self.step is not None else "neither"
            raise expects(f'either "step" or "epoch"; received {given}', whole=True)
        return self


class DynamicConfig(ConfigSection):
    """Which controller moves layers between precisions while training runs.

    Keys that only one controller reads are refused beside another.

    Example:
        >>> from deepseek_hpf.config import DynamicConfig
        >>> phases = [{"epoch": 0, "policy": "float32"}, {"epoch": 1}]
        >>> dynamic = DynamicConfig(controller="schedule", schedule=phases)
        >>> dynamic.schedule[0].policy, dynamic.every
        ('float32', 50)
    """

    controller: ControllerName = "threshold"
    """Name of the controller."""
    every: Count = 50
    """Steps between two looks at what the training step has measured."""
    sample_every: Count = 25
    """Of how many steps one is measured."""
    max_blocks: Annotated[int, Field(ge=1, le=1000)] = 8
    """Largest number of blocks of layers that change their precision together."""
    max_plans: Annotated[int, Field(ge=2, le=1000)] = 8
    """Largest number of distinct plans; each one is compiled once."""
    schedule: Annotated[tuple[SchedulePhase, ...], Field(strict=False, max_length=1000)] = ()
    """Phases of the controller "schedule"; of those that have begun the last one counts."""
    outlier_z: Positive = 6.0
    """Standard deviations of the log-norm from which a block's gradient is an outlier."""
    underflow: Share = 0.5
    """Share of a block's gradient that may underflow, of what float32 would keep."""
    lost_updates: Share = 0.5
    """Share of a block's weights whose updates may be lost in rounding."""
    calm_steps: Count = 1000
    """Steps without a cause for promotion after which a block is demoted the first time."""
    predictive_scale: bool = False
    """Whether the loss scale follows the largest gradients, ahead of overflows."""
    exploration: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps that may be spent on plans known to be worse than the best."""
    seed: When = 0
    """Seed of the controller "adaptive"."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _is_a_list(cls, phases: object) -> object:
        if not isinstance(phases, list | tuple):
            raise expects("a list of phases")
        return phases

    @model_validator(mode="after")
    def _belongs_to_the_controller(self) -> Self:
        for owner, keys in _OWN_SETTINGS.items():
            for key in keys:
                if key in self.model_fields_set and owner != self.controller:
                    expected = f'this key only with "controller": "{owner}"'
                    raise expects(expected, key=key, received=getattr(self, key))
        if self.controller == "schedule" and not self.schedule:
            raise expects("at least one phase", key="schedule", received=[])
        return self
