"""Plans that give single layers another precision: found by a cost model, tried as whole steps."""

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from deepseek_hpf.adapters.walk import rule_nodes, walk
from deepseek_hpf.errors import told
from deepseek_hpf.scheduling.assignment import Assignment, assign
from deepseek_hpf.scheduling.cost_model import CostModel
from deepseek_hpf.tuning.candidates import FLOAT32, Candidate, blanket, with_islands
from deepseek_hpf.tuning.layer_costs import LayerCosts
from deepseek_hpf.tuning.layer_measuring import measure
from deepseek_hpf.tuning.recorded_calls import OutOfTimeError, record
from deepseek_hpf.tuning.search import CLOSE, Search

GAIN = 1.03  # times the fastest step so far: what a plan has to promise to be tried
_SAFETY = 0.7  # share of the error budget that a plan is made for
_ASSIGNING_SECONDS = 5.0
_ENOUGH = 0.95  # share of the layers that is as good as all


def try_mixed_plans(search: Search, seconds: float) -> None:
    """Measures the layers, and tries the plans that promise to beat what has been tried.

    There are two: the best of all plans, and the best that has one policy for all layers of a
    class, which is less at the mercy of what single layers are measured to take. Where the first
    is beyond the error budget, a stricter one follows.

    Args:
        search: A search that has tried the blanket policies. Its notes say why no plan was tried.
        seconds: How long the layers may be measured.
    """
    lows = _low_candidates(search)
    if not lows:
        return
    until = min(time.monotonic() + seconds, search.deadline - search.cost())
    search.say("the layers one by one", search.best_ratio())
    try:
        # The recorded tensors go before whole steps are run: they are as large as a step's.
        planning = _Planning(search, lows[0], _costs(search, lows, until))
    except Exception as error:  # noqa: BLE001 - a model whose layers cannot be called on their own
        reason = str(error) if isinstance(error, OutOfTimeError) else told(error)
        search.notes.append(f"no mixed plan was tried: {reason}")
        return
    planning.run()


def _low_candidates(search: Search) -> list[Candidate]:
    """Low policies whose step is near that of the fastest, each as fast as it was tried."""
    fastest: dict[str, Candidate] = {}
    for name in sorted(search.prepared, key=lambda name: search.prepared[name].seconds):
        candidate = search.candidates[name]
        if candidate.config.policy != FLOAT32:
            fastest.setdefault(str(candidate.config.policy), candidate)
    found = list(fastest.values())
    limit = CLOSE * min((search.prepared[c.name].seconds for c in found), default=0.0)
    return [c for c in found if search.prepared[c.name].seconds <= limit]


def _costs(search: Search, lows: list[Candidate], until: float) -> LayerCosts:
    if time.monotonic() > until:
        raise OutOfTimeError("no time was left")
    kernels = lows[0].config.kernels
    configs = {FLOAT32: blanket(FLOAT32, kernels=kernels).config}
    configs |= {str(low.config.policy): low.config.replace(kernels=kernels) for low in lows}
    trial = search.trial
    trial.rewind()
    trial.apply(blanket(FLOAT32, kernels=False).config)
    recording = record(trial.model, trial.batch[0], until)
    return measure(trial, recording, configs, until)


class _Planning:
    """Makes candidates of measured layers, and tries them.

    Args:
        search: The search.
        low: The fastest blanket policy of low precision.
        costs: What the layers cost.
    """

    def __init__(self, search: Search, low: Candidate, costs: LayerCosts):
        self._search = search
        self._low = low
        self._present = costs.labels(str(low.config.policy))
        base = str(low.config.policy) if search.is_allowed(low) else FLOAT32
        self._model = costs.cost_model(base)
        self._share = costs.share_measured()
        self._nodes = rule_nodes(walk(search.trial.model))
        self._known = [costs.labels(policy) for policy in costs.plans]
        self._anchor = self._fastest_blanket(costs)

    def run(self) -> None:
        """Tries the plans, the most promising first."""
        search, risk_budget = self._search, self._risk_budget()
        found = {}
        for kind, groups in (("by layer", ()), ("by type", self._types())):
            model = replace(self._model, groups=groups)
            found[f"mixed {kind}"] = (model, _assigned(model, risk_budget))
        is_any = False
        for name, (model, assignment) in sorted(found.items(), key=lambda x: x[1][1].seconds):
            if not self._try(name, assignment):
                continue
            is_any = True
            if self._is_beyond_budget(name):
                budget = self._scaled(assignment.risk, search.candidates[name])
                self._try(f"{name}, stricter", _assigned(model, budget))
        if self._share < _ENOUGH:
            search.notes.append(f"{self._share:.0%} of the layers were measured, by their size")
        if not is_any:
            search.notes.append(f"no mixed plan was tried: {self._why_none(found.values())}")

    def _why_none(self, found: Iterable[tuple[CostModel, Assignment]]) -> str:
        """Why no plan was worth a trial."""
        best = min((each for _, each in found), key=self._seconds)
        if dict(best.policies) in self._known:
            return "by the layers measured, the best one is a plan that was tried already"
        gain = self._fastest() / self._seconds(best)
        return f"the best one is predicted to run at {gain:.2f} times the speed of the fastest"

    def _fastest_blanket(self, costs: LayerCosts) -> tuple[float, float]:
        """Measured seconds of a step that the layers are known of, and what the model has of it."""
        prepared = self._search.prepared
        full = blanket(FLOAT32, kernels=self._low.config.kernels).name
        full = full if full in prepared else FLOAT32
        names = {self._low.name: str(self._low.config.policy), full: FLOAT32}
        name = min(names, key=lambda name: prepared[name].seconds)
        labels = self._possible(costs.labels(names[name]))
        return prepared[name].seconds, self._model.seconds(labels)

    def _possible(self, policies: Mapping[str, str]) -> dict[str, str]:
        """Policies, but for layers that do not have theirs to choose."""
        return {
            path: policies[path] if policies[path] in options else next(iter(options))
            for path, options in self._model.layers.items()
        }

    def _types(self) -> tuple[tuple[str, ...], ...]:
        """The layers that have a choice, by class."""
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        names = {node.path: node.class_name for node in self._nodes}
        for path, options in self._model.layers.items():
            if len(options) > 1:
                groups[(names[path], *sorted(options))].append(path)
        return tuple(map(tuple, groups.values()))

    def _risk_budget(self) -> float:
        """What the layers may risk, if the error of a step grows as the root of its risk."""
        if self._search.is_allowed(self._low):
            return math.inf
        return self._scaled(self._model.risk(self._possible(self._present)), self._low)

    def _scaled(self, risk: float, candidate: Candidate) -> float:
        error = candidate.loss_error
        if error is None or not math.isfinite(risk):
            return math.inf
        if not math.isfinite(error):
            return risk / 100
        return risk * min(_SAFETY * self._search.error_budget / max(error, 1e-30), 1.0) ** 2

    def _is_beyond_budget(self, name: str) -> bool:
        candidate = self._search.candidates[name]
        return candidate.loss_error is not None and not self._search.is_allowed(candidate)

    def _fastest(self) -> float:
        return self._search.prepared[self._search.close()[0]].seconds

    def _seconds(self, assignment: Assignment) -> float:
        """What a step would take: the fastest blanket's, less what the assignment gains on it."""
        measured, modelled = self._anchor
        return max(measured - (modelled - assignment.seconds), measured / 10)

    def _try(self, name: str, assignment: Assignment) -> bool:
        """Tries an assignment that is new and promises enough; whether it did."""
        policies = dict(assignment.policies)
        seconds = self._seconds(assignment)
        if policies in self._known or self._fastest() < GAIN * seconds:
            return False
        self._known.append(policies)
        made = with_islands(self._low, name, policies, self._present, self._nodes)
        reference = self._search.prepared[FLOAT32].seconds
        self._search.add(replace(made, predicted=reference / seconds))
        return True


def _assigned(model: CostModel, risk_budget: float) -> Assignment:
    return assign(model, risk_budget=risk_budget, time_limit=_ASSIGNING_SECONDS)
