"""The processes of `jax.distributed`."""

import json
import struct
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from numpy.typing import NDArray


class JaxGroup:
    """All processes of the cluster that `jax.distributed.initialize` has formed."""

    def __init__(self) -> None:
        self.rank = int(jax.process_index())
        self.size = int(jax.process_count())

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds numbers over the processes, in float64; all of them get the same bits."""
        # As bytes: without `jax_enable_x64` JAX would make float32 of them.
        payload = np.frombuffer(struct.pack(f"<{len(values)}d", *values), np.uint8)
        everyones = [struct.unpack(f"<{len(values)}d", row.tobytes()) for row in _gather(payload)]
        return [sum(column) for column in zip(*everyones, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Returns the leader's value, a JSON value."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Returns every process's value, a JSON value, in the order of the processes."""
        text = np.frombuffer(json.dumps(value).encode("ascii"), np.uint8)
        lengths = [int(row[0]) for row in _gather(np.array([text.size], np.int32))]
        padded = np.zeros(max(lengths), np.uint8)
        padded[: text.size] = text
        rows = zip(_gather(padded), lengths, strict=True)
        return [json.loads(row[:length].tobytes()) for row, length in rows]


def _gather(array: NDArray[Any]) -> NDArray[Any]:
    """A row for each process."""
    rows = np.asarray(multihost_utils.process_allgather(array))
    return rows.reshape(-1, *array.shape)  # of one process JAX returns the array itself
