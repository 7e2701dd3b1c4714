"""The one message of a step: what each rank says, so that its sum over all ranks decides.

One all-reduce with SUM carries everything:

- *non-finite*: the number of ranks that found an inf or a NaN. It is positive exactly if the
  maximum of their flags is 1. The sum of those ranks' numbers names the rank, where it is one.
- *agreement*: a fingerprint, as four whole numbers of 16 bits, and their squares. By the inequality
  of Cauchy and Schwarz `n * sum(x**2) == sum(x)**2` holds exactly if all `x` are equal. The sums
  are exact in float64 up to 2**21 ranks, so that every rank comes to the same conclusion.
- *sums*: whatever is to be added over the ranks, such as the squared norms of shards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_hpf.config import FLOAT32_MAX
from deepseek_hpf.distributed.fingerprint import SIZE
from deepseek_hpf.errors import PrecisionError

FRAGMENT = 2  # bytes of a fingerprint that are one number
FRAGMENTS = SIZE // FRAGMENT
HEAD = 3 + 2 * FRAGMENTS  # numbers before the sums
MAX_RANKS = 2**21


@dataclass(frozen=True, kw_only=True)
class StepMessage:
    """What one rank says of a step.

    Args:
        rank: Its number, from 0.
        fingerprint: Of what all ranks have to agree on.
        nonfinite: Whether it found an inf or a NaN.
        sums: Numbers to be added over the ranks, such as parts of squared norms. One that is not
            finite counts as a finding.

    Example:
        >>> from deepseek_hpf.distributed.fingerprint import fingerprint
        >>> from deepseek_hpf.distributed.message import StepMessage, decide
        >>> same = fingerprint({"scale": 32768.0})
        >>> messages = [
        ...     StepMessage(rank=0, fingerprint=same, nonfinite=False, sums=(9.0,)),
        ...     StepMessage(rank=1, fingerprint=same, nonfinite=False, sums=(16.0,)),
        ... ]
        >>> total = [sum(column) for column in zip(*(m.encode() for m in messages))]
        >>> decide(total, size=2)
        Decision(skip=False, nonfinite_ranks=0, culprit=None, agreed=True, sums=(25.0,))
    """

    rank: int
    fingerprint: bytes
    nonfinite: bool
    sums: tuple[float, ...] = ()

    def encode(self) -> list[float]:
        """Returns the numbers that are sent, float64; none of them is an inf or a NaN."""
        finite = all(map(math.isfinite, self.sums))
        flag = float(self.nonfinite or not finite)
        whole = [
            int.from_bytes(self.fingerprint[i : i + FRAGMENT], "big")
            for i in range(0, SIZE, FRAGMENT)
        ]
        return [
            1.0,
            flag,
            flag * self.rank,
            *map(float, whole),
            *(float(x * x) for x in whole),
            *(0.0 if flag else number for number in self.sums),
        ]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the sum of all messages says; the same on every rank.

    Args:
        skip: Whether the step is left out, on all ranks.
        nonfinite_ranks: Number of ranks that found an inf or a NaN.
        culprit: The rank that did, where it is one; else None.
        agreed: Whether all ranks sent the same fingerprint.
        sums: Sums over the ranks; over those that found nothing, where the step is skipped.
    """

    skip: bool
    nonfinite_ranks: int
    culprit: int | None
    agreed: bool
    sums: tuple[float, ...]

    @property
    def norms(self) -> tuple[float, ...]:
        """Square roots of the sums, at most float32's largest number."""
        return tuple(min(math.sqrt(max(total, 0.0)), FLOAT32_MAX) for total in self.sums)


def decide(total: Sequence[float], size: int) -> Decision:
    """Reads the sum of the messages of all ranks.

    Args:
        total: Sum of what `StepMessage.encode` returned, over the ranks.
        size: Number of ranks.

    Returns:
        The decision.

    Raises:
        PrecisionError: The sum is not one of `size` messages.
    """
    if len(total) < HEAD or total[0] != size:
        raise PrecisionError(
            f"Expected the sum of the messages of {size} ranks. Received: one of "
            f"{total[0] if total else 0:g}. Another message was in its place: all ranks have to "
            "step the same optimizers in the same order."
        )
    nonfinite = int(total[1])
    sums, squares = total[3 : 3 + FRAGMENTS], total[3 + FRAGMENTS : HEAD]
    agreed = all(size * int(q) == int(s) ** 2 for s, q in zip(sums, squares, strict=True))
    return Decision(
        skip=nonfinite > 0,
        nonfinite_ranks=nonfinite,
        culprit=int(total[2]) if nonfinite == 1 else None,
        agreed=agreed,
        sums=tuple(total[HEAD:]),
    )
