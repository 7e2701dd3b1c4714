"""What one decision a step costs, simulated for 2 to 10,000 devices; needs no device.

    python examples/distributed/coordination_cost.py

Every rank's message goes through an all-reduce by recursive doubling, rank by rank and round by
round, as gloo and MPI do it for small messages: in round k each rank exchanges its sum so far with
the rank whose number differs in bit k. Ranks beyond a power of two first hand their message to a
partner, and get the sum from it at the end. Counted are rounds, messages and bytes; the seconds are
an estimate, rounds times latency.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepseek_hpf.distributed.fingerprint import fingerprint
from deepseek_hpf.distributed.message import StepMessage, decide

SIZES = (2, 8, 64, 512, 1_000, 10_000)
NUMBER = 8  # bytes, float64


@dataclass
class Traffic:
    """What the messages of one all-reduce were."""

    rounds: int = 0
    messages: int = 0
    sent_by_busiest: int = 0  # messages

    def round(self, senders: NDArray[np.intp], sent: NDArray[np.int64]) -> None:
        """Counts one round in which each of `senders` sends one message."""
        sent[senders] += 1
        self.rounds += 1
        self.messages += len(senders)
        self.sent_by_busiest = int(sent.max())


def all_reduce(vectors: NDArray[np.float64]) -> tuple[NDArray[np.float64], Traffic]:
    """Adds the rows by recursive doubling.

    Args:
        vectors: One row for each rank.

    Returns:
        What each rank has at the end, and what it took.
    """
    size = len(vectors)
    sums, sent, traffic = vectors.copy(), np.zeros(size, np.int64), Traffic()
    power = 2 ** int(math.log2(size))
    beyond = np.arange(power, size)
    if len(beyond):
        traffic.round(beyond, sent)
        sums[beyond - power] += sums[beyond]
    ranks = np.arange(power)
    for bit in range(int(math.log2(power))):
        traffic.round(ranks, sent)
        sums[:power] = sums[:power] + sums[ranks ^ (1 << bit)]
    if len(beyond):
        traffic.round(beyond - power, sent)
        sums[beyond] = sums[beyond - power]
    return sums, traffic


def messages_of(size: int, bad: int | None) -> NDArray[np.float64]:
    """The messages of a step in which rank `bad` found a NaN, encoded."""
    alike = fingerprint({"step": 1, "scale": 2.0**15})
    said = (
        StepMessage(rank=rank, fingerprint=alike, nonfinite=rank == bad, sums=(1.0,))
        for rank in range(size)
    )
    return np.array([message.encode() for message in said])


def skip_probability(size: int, each: float) -> float:
    """The probability that a step is skipped, if each device alone would skip it with `each`."""
    return -math.expm1(size * math.log1p(-each))


def row(size: int, latency: float, each: float) -> list[str]:
    """A row of the table, for one number of devices."""
    sums, traffic = all_reduce(messages_of(size, bad=size - 1))
    decisions = {decide(list(total), size) for total in sums}
    (decision,) = decisions  # one for all ranks
    if not (decision.skip and decision.agreed and decision.culprit == size - 1):
        raise RuntimeError(f"Expected the NaN of rank {size - 1} to be found. Received: {decision}")
    message = sums.shape[1] * NUMBER
    return [
        f"{size:,}",
        str(traffic.rounds),
        f"{traffic.sent_by_busiest * message:,}",
        f"{traffic.messages * message:,}",
        f"{traffic.rounds * latency * 1e6:.0f}",
        f"{(size - 1) * message:,}",
        f"{skip_probability(size, each):.2%}",
    ]


HEADER = [
    "devices",
    "rounds",
    "bytes sent by the busiest device",
    "bytes on the whole network",
    "latency, µs",
    "bytes if a leader gathered",
    "steps skipped",
]


def table(latency: float, each: float) -> str:
    """The whole table, in Markdown."""
    rows = [HEADER, ["---:"] * len(HEADER), *(row(size, latency, each) for size in SIZES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main(arguments: Sequence[str] | None = None) -> str:
    """Prints the table, and returns it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=10e-6, help="seconds a round")
    parser.add_argument(
        "--bad-steps", type=float, default=1e-6, help="share of bad steps of a device alone"
    )
    given = parser.parse_args(arguments)
    made = table(given.latency, given.bad_steps)
    print(made)
    return made


if __name__ == "__main__":
    main()
