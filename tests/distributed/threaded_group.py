"""Ranks that are threads of one process, for tests of the protocol alone."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from deepseek_hpf.errors import ConfigError, PrecisionError

WAIT = 60  # seconds, for a test that would hang


class Board:
    """Where the ranks lay down their values; all see all of them, in the order of the ranks."""

    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=WAIT)
        self.values = [None] * size

    def exchange(self, rank, value):
        self.values[rank] = value
        self.barrier.wait()
        seen = list(self.values)
        self.barrier.wait()
        return seen


class ThreadedGroup:
    def __init__(self, board, rank):
        self._board = board
        self.rank = rank
        self.size = len(board.values)

    def sum(self, values):
        everyones = self._board.exchange(self.rank, values)
        return [sum(column) for column in zip(*everyones, strict=True)]

    def broadcast(self, value):
        return self.gather(value)[0]

    def gather(self, value):
        return [json.loads(text) for text in self._board.exchange(self.rank, json.dumps(value))]


def on_ranks(size, work):
    """Runs `work(group)` on every rank; returns what each returned, or the exception it raised."""
    board = Board(size)

    def outcome(rank):
        try:
            return work(ThreadedGroup(board, rank))
        except (ConfigError, PrecisionError) as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(outcome, range(size)))
