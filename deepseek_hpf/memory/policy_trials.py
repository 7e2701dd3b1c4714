"""The trials of one model under one policy: in one process while it lives, then in another."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.batch_search import BatchSearch, doubling
from deepseek_hpf.memory.batch_size_result import BatchTrial
from deepseek_hpf.memory.memory_estimate import MemoryEstimate
from deepseek_hpf.memory.step_trial import StepTrial, TrialJob
from deepseek_hpf.memory.trial_process import DoesNotFitError, TrialProcess

_STILL_GAINS = 1.02  # the throughput of twice the rows, over the best so far
_IN_VAIN = 2  # so many doublings in a row without a gain end the search for the fastest


class PolicyTrials:
    """Tries batch sizes of a model under a policy.

    Args:
        job: The model, with the policy.
        policy: Name of the policy, for the table.
        limit: Bytes that a step may take.
        until: Value of `time.monotonic()` after which no further trial begins but the first.
        progress: Is told what is being tried.

    Attributes:
        trials: What came of it, by rows.
        notes: What has to be said of how it ended.
    """

    def __init__(
        self,
        job: TrialJob,
        policy: str,
        limit: int,
        until: float,
        progress: Callable[[str], object],
    ):
        self._job = job
        self._policy = policy
        self._limit = limit
        self._until = until
        self._progress = progress
        self._open = contextlib.ExitStack()
        self._process: TrialProcess | None = None
        self._largest_asked = 0
        self._line = _Line()
        self.trials: list[BatchTrial] = []
        self.notes: list[str] = []

    def run(self, objective: str, first: int, ceiling: int) -> None:
        """Tries, and ends the process.

        Args:
            objective: `"fits"` or `"throughput"`.
            first: Rows to begin with, and what the others are multiples of.
            ceiling: Most rows.

        Raises:
            ConfigError: The model cannot be made, or its step fails.
        """
        with self._open:
            self._estimate(first)
            if objective == "fits":
                search = BatchSearch(self._attempt, self._limit, ceiling, first)
                search.run(max(self._line.rows(self._limit), first))
            else:
                self._run_doubling(first, ceiling)
        self.trials.sort(key=lambda each: each.batch_size)

    def _run_doubling(self, first: int, ceiling: int) -> None:
        best, vain = 0.0, 0
        for rows in doubling(first, ceiling):
            if self._attempt(rows) is None:
                break
            found = self.trials[-1].throughput or 0.0
            vain = 0 if found > _STILL_GAINS * best else vain + 1
            best = max(best, found)
            if vain >= _IN_VAIN:
                break
        if not any(each.fits for each in self.trials) and first > 1:
            BatchSearch(self._attempt, self._limit, first - 1, first).run(first - 1)

    def _attempt(self, rows: int) -> int | None:
        if self.trials and time.monotonic() > self._until:
            note = "the time was over before all was tried"
            self.notes += [note] if note not in self.notes else []
            return None
        self._progress(f"{self._policy}: {rows} rows")
        trial = self._tried(rows)
        self.trials.append(trial)
        return (trial.peak or 0) if trial.fits else None

    def _tried(self, rows: int) -> BatchTrial:
        try:
            found: StepTrial = self._started(rows).ask("step", rows)
        except DoesNotFitError as error:
            self._close()
            return BatchTrial(
                policy=self._policy,
                batch_size=rows,
                fits=False,
                peak=error.needed,
                estimate=self._line.at(rows),
                note=str(error),
            )
        peak = max((each for each in (found.peak, found.first_peak) if each), default=None)
        fits = peak is None or peak <= self._limit
        return BatchTrial(
            policy=self._policy,
            batch_size=rows,
            fits=fits,
            seconds=found.seconds if fits else None,
            peak=peak,
            estimate=self._line.at(rows),
            note="" if fits else "it needs more than it may have",
        )

    def _estimate(self, rows: int) -> None:
        self._progress(f"{self._policy}: estimate")
        try:
            self._line = _Line.through(self._started(0).ask("estimate", rows))
        except (DoesNotFitError, ConfigError) as error:
            # A step may run that cannot be traced; if it does not, the trial says so.
            self.notes.append(f"{self._policy}: no estimate, as {str(error)[:120]}")
            self._close()

    def _started(self, rows: int) -> TrialProcess:
        """The process, or a fresh one where a larger batch has left it with more than it needs."""
        if self._process is None or rows < self._largest_asked:
            self._close()
            self._process = self._open.enter_context(TrialProcess.started(self._job, self._limit))
        self._largest_asked = max(self._largest_asked, rows)
        return self._process

    def _close(self) -> None:
        self._open.close()
        self._process, self._largest_asked = None, 0


@dataclass(frozen=True)
class _Line:
    """Bytes of a step by rows: what grows with them is what a step needs beyond the gradients."""

    fixed: int = 0
    each: float = 0.0

    @classmethod
    def through(cls, estimate: MemoryEstimate) -> Self:
        """The line that an estimate lies on."""
        growing = estimate.batch + max(estimate.temporary - estimate.gradients, 0)
        return cls(estimate.total - growing, growing / estimate.batch_size)

    def rows(self, limit: int) -> float:
        """How many rows a limit suffices for; 1 where it does not, or nothing is known."""
        return max((limit - self.fixed) / self.each, 1.0) if self.each else 1.0

    def at(self, rows: int) -> int | None:
        """Bytes; None where nothing is known."""
        return round(self.fixed + self.each * rows) if self.each else None
