"""What a controller decided and why: one event a decision."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["promote", "demote", "phase", "explore", "settle"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A decision of a controller.

    Args:
        step: Number of the first step that it holds for.
        kind: `"promote"` and `"demote"` move a block, `"phase"` begins one of a schedule,
            `"explore"` tries a plan, `"settle"` goes to the best one known.
        reason: Why, in words.
        plan: Digest of the plan that holds from now on.
        block: Name of the block; None where the whole model is meant.
        scale: Loss scale to go back to, where a layer is promoted instead of halving it.

    Example:
        >>> from deepseek_hpf.scheduling.events import Event
        >>> Event(step=7, kind="promote", reason="overflow", plan="9f", block="stem").block
        'stem'
    """

    step: int
    kind: Kind
    reason: str
    plan: str
    block: str | None = None
    scale: float | None = None
