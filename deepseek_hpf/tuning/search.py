"""The order in which candidates are tried, so that little time goes to those that cannot win."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from deepseek_hpf.errors import ConfigError, told
from deepseek_hpf.timing import Timings
from deepseek_hpf.tuning.candidates import Candidate
from deepseek_hpf.tuning.numerical_error import StepValues
from deepseek_hpf.tuning.trial import Prepared, Trial

Say = Callable[[str, float | None], None]
"""Is told what is being tried, and the best ratio to float32 so far."""

CLOSE = 1.15  # times the fastest step's time: within it, first steps do not decide
MARGIN = 1.01  # what a candidate has to gain on the fastest blanket policy: less is noise
ROUNDS = 10
_TIMING_SECONDS = 0.05
_MOST_CALLS = 50


@dataclass
class Search:
    """Candidates of one model, tried one after the other and then in turns.

    Args:
        trial: The model.
        error_budget: Largest relative error of the loss.
        deadline: Value of `time.monotonic()` at which to be done.
        say: Is told what happens.
        candidates: What came of each, by name.
        prepared: The steps of those that run.
        notes: What else is to be said.
    """

    trial: Trial
    error_budget: float
    deadline: float
    say: Say
    candidates: dict[str, Candidate] = field(default_factory=dict)
    prepared: dict[str, Prepared] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _exact: StepValues | None = None

    def take_reference(self, candidate: Candidate) -> None:
        """Tries float32, which all others are compared with.

        Args:
            candidate: Float32 without kernels.
        """
        self.say("loss and gradients in float32", None)
        self._exact = self.trial.values(candidate.config)
        self._prepare(candidate)

    def add(self, candidate: Candidate, *, refused: str | None = None) -> Prepared | None:
        """Tries a candidate's first steps, unless it is too late for it.

        Args:
            candidate: The candidate.
            refused: Why it is not even tried; None to try it.

        Returns:
            Its step, or None where there is none; the candidate's note says why.
        """
        if refused is None and time.monotonic() + self.cost() > self.deadline:
            refused = "not tried: no time was left"
        if refused is not None:
            self.candidates[candidate.name] = replace(candidate, note=refused)
            return None
        self.say(candidate.name, self.best_ratio())
        try:
            prepared = self._prepare(candidate)
            if candidate.config.kernels and not prepared.kernels and not candidate.config.rules:
                # The same step once more: no layer has a kernel.
                del self.candidates[candidate.name], self.prepared[candidate.name]
                return None
            self._take_error(candidate.name)
        except Exception as error:  # noqa: BLE001 - XLA may refuse a model; the others go on
            self.prepared.pop(candidate.name, None)
            self.candidates[candidate.name] = replace(candidate, note=f"failed: {told(error)}")
            return None
        return prepared

    def cost(self) -> float:
        """Seconds that a candidate takes, judged by those before: first steps and its error."""
        first = max((p.first_seconds + 3 * p.seconds for p in self.prepared.values()), default=0.0)
        return 1.2 * first

    def best_ratio(self) -> float | None:
        """The best ratio of a candidate that is within the budget."""
        ratios = [c.ratio for c in self.candidates.values() if c.ratio and self.is_allowed(c)]
        return max(ratios, default=None)

    def is_allowed(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps the error budget."""
        if candidate.loss_error is None or candidate.gradient_error is None:
            return False
        return candidate.loss_error <= self.error_budget and math.isfinite(candidate.gradient_error)

    def close(self) -> list[str]:
        """Names of the allowed candidates that may be the fastest, the fastest first."""
        allowed = [n for n in self.prepared if self.is_allowed(self.candidates[n])]
        allowed.sort(key=lambda name: self.prepared[name].seconds)
        limit = CLOSE * self.prepared[allowed[0]].seconds
        return [name for name in allowed if self.prepared[name].seconds <= limit]

    def turns_seconds(self, more: int) -> float:
        """Seconds that timing in turns will take, judged by the steps so far.

        Args:
            more: Candidates yet to come that may be among those that are timed.

        Returns:
            Of the reference, those that are near the fastest, and the ones to come.
        """
        close = self.close()
        names = dict.fromkeys([next(iter(self.prepared)), *close])
        taken = [self.prepared[name].seconds for name in [*names, *close[:1] * more]]
        return 1.5 * (ROUNDS + 1) * sum(max(each, 2 * _TIMING_SECONDS) for each in taken)

    def time_in_turns(self, names: list[str], reference: str, until: float) -> None:
        """Times candidates beside float32.

        Args:
            names: The candidates.
            reference: Name of the candidate that ratios are to.
            until: Value of `time.monotonic()` after which no further round begins.
        """
        together = dict.fromkeys([reference, *names])
        self.say(f"{len(together)} candidates in turns", self.best_ratio())
        steps = {name: self.prepared[name] for name in together}
        shortest = min(step.seconds for step in steps.values())
        calls = min(max(math.ceil(_TIMING_SECONDS / max(shortest, 1e-9)), 1), _MOST_CALLS)
        timings = self.trial.time(steps, rounds=ROUNDS, calls=calls, deadline=until)
        for name in together:
            self._note_times(name, timings, reference)

    def winner(self, reference: str) -> Candidate:
        """The fastest that is allowed, and that truly beats what Keras has.

        Args:
            reference: Name of the float32 candidate.

        Returns:
            The candidate.
        """
        allowed = [self.candidates[n] for n in self.prepared if self.is_allowed(self.candidates[n])]
        # Times taken in turns count for more than first steps, of which a search that was
        # interrupted may have nothing else.
        timed = [c for c in allowed if c.spread] or allowed
        # What Keras has, then what needs no rules for single layers, then all: the simpler one
        # wins unless what comes after truly beats it.
        best = max(
            (c for c in timed if c.is_blanket), key=_ratio, default=self.candidates[reference]
        )
        for group in ([c for c in timed if not c.config.rules], timed):
            fastest = max(group, key=_ratio, default=best)
            if _ratio(fastest) >= MARGIN * _ratio(best):
                best = fastest
        return best

    def _prepare(self, candidate: Candidate) -> Prepared:
        prepared = self.trial.prepare(candidate.config)
        self.prepared[candidate.name] = prepared
        first = next(iter(self.prepared.values()))
        self.candidates[candidate.name] = replace(
            candidate,
            seconds=prepared.seconds,
            ratio=first.seconds / prepared.seconds,
            loss_error=0.0 if prepared is first else None,
            gradient_error=0.0 if prepared is first else None,
        )
        return prepared

    def _take_error(self, name: str) -> None:
        if self._exact is None:
            raise ConfigError("expected the reference to be taken before other candidates.")
        found = self.trial.values(self.candidates[name].config).deviation(self._exact)
        note = "" if found.is_finite else "its loss or gradients are not finite"
        if not note and found.loss > self.error_budget:
            note = f"its loss is beyond the error budget of {self.error_budget:g}"
        self.candidates[name] = replace(
            self.candidates[name],
            loss_error=found.loss,
            gradient_error=found.gradients,
            note=note,
        )

    def _note_times(self, name: str, timings: Timings, reference: str) -> None:
        ratio = timings.speedup(name, over=reference)
        self.candidates[name] = replace(
            self.candidates[name],
            seconds=timings.spread(name).median,
            ratio=ratio.median,
            spread=(ratio.low, ratio.high),
        )


def _ratio(candidate: Candidate) -> float:
    return candidate.ratio or 0.0
