"""What every gradient clipping rule is: a frozen decision about the gradients of one step."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from keras import ops

from deepseek_hpf import config as configuration
from deepseek_hpf.errors import ConfigError, ConfigTypeError

Tensor = Any


class Decision(NamedTuple):
    """What a rule found for the gradients of one step.

    Attributes:
        clipped: Boolean scalar: a gradient is made smaller.
        divisor: What the gradients are divided by: one scalar for all, or a list with a tensor for
            each.
        state: The rule's state after the step, by name.
    """

    clipped: Tensor
    divisor: Tensor | list[Tensor]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Clipping:
    """Base of the rules.

    `decide` looks at the gradients and changes nothing, `apply` carries the decision out. They are
    apart so that an optimizer which accumulates gradients decides outside of the conditional in
    which it updates.
    """

    kind: ClassVar[str]
    by_norm: ClassVar[bool] = False
    """Whether the decision is one divisor for all gradients, drawn from the global norm alone."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_positive(type(self).__name__, field.name, getattr(self, field.name))

    def initial_state(self) -> dict[str, float]:
        """Returns the names and first values of the float32 scalars that the rule keeps."""
        return {}

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Decides how far to clip.

        Args:
            gradients: Finite dense float tensors.
            weights: The variables they belong to, of the same shapes.
            norm: Global norm of the gradients, float32 scalar.
            state: The rule's state before the step.

        Returns:
            The `Decision`.
        """
        raise NotImplementedError

    def apply(self, gradients: Sequence[Tensor], divisor: Tensor | list[Tensor]) -> list[Tensor]:
        """Returns the gradients, clipped as decided."""
        if isinstance(divisor, list):
            return [ops.divide(g, d) for g, d in zip(gradients, divisor, strict=True)]
        return [ops.divide(gradient, divisor) for gradient in gradients]

    def get_config(self) -> dict[str, Any]:
        """Returns `kind` and the rule's arguments; `from_config` reads it back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def shrunk_to(norm: Tensor, bound: Tensor | float, state: dict[str, Tensor]) -> Decision:
    """Returns the decision to scale all gradients so that their norm is at most `bound`."""
    # Where nothing is cut the divisor is exactly 1 and leaves every bit.
    divisor = ops.maximum(ops.divide(norm, bound), 1.0)
    return Decision(ops.greater(norm, bound), divisor, state)


def _check_positive(owner: str, name: str, value: object) -> None:
    wanted = f"Argument `{name}` of {owner} must be a positive, finite number."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(
            f"{wanted} Received: {name}={value!r} (of type {type(value).__name__})"
        )
    # Below it float32, in which the step computes, may flush to zero.
    if not configuration.FLOAT32_TINY <= value <= configuration.FLOAT32_MAX:
        raise ConfigError(f"{wanted} Received: {name}={value!r}")
