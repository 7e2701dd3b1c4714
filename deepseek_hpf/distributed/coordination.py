"""One decision a step for all ranks, from one reduced message; disagreement is repaired aloud."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_hpf.config_wording import shown
from deepseek_hpf.distributed.fingerprint import fingerprint
from deepseek_hpf.distributed.group import LEADER, Group
from deepseek_hpf.distributed.message import Decision, StepMessage, decide
from deepseek_hpf.distributed.start import check_alike, differences
from deepseek_hpf.errors import PrecisionError

BYTES = 8  # of a number of a message, float64

logger = logging.getLogger(__name__)


class Coordination:
    """Makes the ranks of a training decide as one.

    Args:
        group: The ranks.
        description: What has to be the same on all of them from the start on.

    Raises:
        ConfigError: A rank differs from the leader; raised on all ranks.

    Attributes:
        messages: Messages that this rank has put into reductions, so far.
        message_bytes: Size of the last one in bytes, before the reduction's own growth.

    Example:
        >>> from deepseek_hpf.distributed.coordination import Coordination
        >>> from deepseek_hpf.distributed.group import Alone
        >>> coordination = Coordination(Alone(), {"policy": "mixed_float16"})
        >>> coordination.decide({"scale": 2.0**15}, nonfinite=True)[0].skip
        True
        >>> coordination.message_bytes
        88
    """

    def __init__(self, group: Group, description: Mapping[str, Any]):
        self.group = group
        self.messages = 0
        self.message_bytes = 0
        check_alike(group, description)

    def decide(
        self,
        state: Mapping[str, Any],
        *,
        nonfinite: bool = False,
        sums: Sequence[float] = (),
    ) -> tuple[Decision, dict[str, Any] | None]:
        """Comes to one decision; every rank calls it, at the same step.

        Args:
            state: What the ranks should agree on by now, a JSON value: the scale, the digest of the
                plan. Its key "step" is the number of the step, where given.
            nonfinite: Whether this rank found an inf or a NaN.
            sums: Numbers to be added over the ranks, such as parts of squared norms.

        Returns:
            The decision, and the leader's state if this rank has another one: it has to take it
            over. A warning in the log of both names the difference.

        Raises:
            PrecisionError: The ranks are at different steps, which no state repairs. It is raised
                on all of them.
        """
        message = StepMessage(
            rank=self.group.rank,
            fingerprint=fingerprint(state),
            nonfinite=nonfinite,
            sums=tuple(sums),
        ).encode()
        self.messages += 1
        self.message_bytes = BYTES * len(message)
        decision = decide(self.group.sum(message), self.group.size)
        return decision, None if decision.agreed else self._leaders(state)

    def _leaders(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        states = self.group.gather(dict(state))
        leaders = states[LEADER]
        for rank, other in enumerate(states):
            if other.get("step") != leaders.get("step"):
                raise PrecisionError(
                    f"Expected all ranks at step {shown(leaders.get('step'))}, that of rank "
                    f"{LEADER}. Received: rank {rank} at step {shown(other.get('step'))}. Resume "
                    "all ranks from the same checkpoint, and step the same optimizers on each."
                )
            if other != leaders and self.group.rank in (LEADER, rank):
                logger.warning(
                    "Rank %d disagrees with rank %d: %s. It goes on as rank %d does.",
                    rank,
                    LEADER,
                    ", ".join(differences(leaders, other)),
                    LEADER,
                )
        return None if states[self.group.rank] == leaders else leaders
