"""Ranks that are real processes, which talk over loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LIMIT = 240  # seconds: for a machine that is busy; a hang fails the test


@dataclass
class Outcome:
    """What became of a rank."""

    code: int
    result: Any
    output: str
    seconds: float  # that the launch took

    @property
    def killed(self):
        return self.code == -signal.SIGKILL


def launch(script, size, folder, given, *, limit=LIMIT, wait_for=None):
    """Runs `script` of this folder as `size` processes.

    Args:
        script: File name; it is called with rank, size, the path of its arguments and that of its
            result, both JSON, and a path for the ranks to meet at.
        size: Number of processes.
        folder: For files; an empty one for each launch.
        given: The arguments, a JSON value.
        wait_for: Ranks to wait for; the others are killed then. None for all.
        limit: Seconds after which the processes are killed, and the launch fails.

    Returns:
        The outcomes, in the order of the ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = folder / "given.json"
    arguments.write_text(json.dumps(given))
    begun = time.monotonic()
    started = [_start(script, rank, size, folder, arguments) for rank in range(size)]
    try:
        for rank in range(size) if wait_for is None else wait_for:
            _wait(rank, started[rank], folder, begun + limit)
        seconds = time.monotonic() - begun
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [_outcome(*each, folder, seconds) for each in enumerate(started)]


def _start(script, rank, size, folder, arguments):
    command = [sys.executable, str(FOLDER / script), str(rank), str(size), str(arguments)]
    command += [str(folder / f"result{rank}.json"), str(folder / "meeting_place")]
    root = str(FOLDER.parents[1])
    path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / f"output{rank}").open("w") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONPATH": path},
        )


def _wait(rank, process, folder, until):
    try:
        process.wait(timeout=max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        said = (folder / f"output{rank}").read_text()
        raise AssertionError(f"rank {rank} did not end in time; it said: {said}") from None


def _outcome(rank, process, folder, seconds):
    output = (folder / f"output{rank}").read_text()
    path = folder / f"result{rank}.json"
    result = json.loads(path.read_text()) if path.exists() else None
    return Outcome(process.returncode, result, output, seconds)


def succeeded(outcomes):
    """Returns the results, of ranks all of which came to their end."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, f"rank {rank} ended with {outcome.code}: {outcome.output}"
    return [outcome.result for outcome in outcomes]
