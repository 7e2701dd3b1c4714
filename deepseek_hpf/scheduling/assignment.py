"""The policies of least time within a budget of risk: a labelling problem, solved exactly."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, sparse

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.cost_model import Cost, CostModel

_Options = dict[str, Cost]
_SCALE = 1e3  # of the largest cost in the solver, whose gap of 1e-6 is absolute


@dataclass(frozen=True)
class Assignment:
    """A policy for each layer.

    Args:
        policies: Layer path to policy.
        seconds: Of a step, as the cost model has it.
        risk: Of a step.
        is_optimal: Whether it is proven that nothing is faster within the budget; False where the
            time did not suffice for that.
    """

    policies: Mapping[str, str]
    seconds: float
    risk: float
    is_optimal: bool


def assign(
    model: CostModel, *, risk_budget: float = math.inf, time_limit: float = 10.0
) -> Assignment:
    """Finds the policies of least time within a budget of risk.

    With a variable `x[layer, policy]` of 0 or 1 and `y[edge, policy, policy]` for what happens on
    an edge, it is the integer program

        minimize    sum seconds x + sum casts y
        subject to  sum_p x[v, p] = 1
                    sum_q y[e, p, q] = x[producer, p],  sum_p y[e, p, q] = x[consumer, q]
                    sum risk x <= risk_budget

    For two policies and no budget it is a minimum cut: the linear program alone has a solution of
    zeros and ones. The same input gives the same assignment.

    Args:
        model: Layers, edges and groups.
        risk_budget: The most that risks may add up to, kept to one part in a million.
        time_limit: Seconds. After them the best found counts.

    Returns:
        The assignment.

    Raises:
        ConfigError: No assignment is within the budget, or layers of one group share no policy.

    Example:
        >>> from deepseek_hpf.scheduling.cost_model import Cost, CostModel, Edge
        >>> layer = {"float32": Cost(3.0), "mixed_bfloat16": Cost(1.0, risk=0.5)}
        >>> cast = {("float32", "mixed_bfloat16"): 0.5, ("mixed_bfloat16", "float32"): 0.5}
        >>> model = CostModel({"a": layer, "b": layer}, (Edge("a", "b", cast),))
        >>> assign(model).seconds
        2.0
        >>> assign(model, risk_budget=0.7).seconds
        4.5
    """
    problem = _Problem(model, risk_budget)
    if not model.layers:
        return Assignment({}, 0.0, 0.0, is_optimal=True)
    solution, is_optimal = problem.solved(time_limit)
    policies = {path: solution[head] for path, head in problem.head.items()}
    return Assignment(policies, model.seconds(policies), model.risk(policies), is_optimal)


@dataclass
class _Problem:
    """The model with each group as one layer, the first of its paths, and no policy too risky."""

    model: CostModel
    budget: float
    head: dict[str, str] = field(init=False)
    options: dict[str, _Options] = field(init=False)
    casts: dict[tuple[str, str], dict[tuple[str, str], float]] = field(init=False)

    def __post_init__(self) -> None:
        self.head = _heads(self.model)
        self.options = self._merged_options()
        least = math.fsum(_least_risk(each)[1].risk for each in self.options.values())
        if not least <= self.budget * (1 + 1e-9):
            raise ConfigError(
                f"expected a risk budget of at least {least:g}, the least that these layers can "
                f"have. Received: {self.budget:g}. Give float32, whose risk is 0, to each layer."
            )
        self.casts = self._merged_casts()

    def _merged_options(self) -> dict[str, _Options]:
        members: dict[str, list[str]] = defaultdict(list)
        for path, head in self.head.items():
            members[head].append(path)
        return {head: self._options_of(paths) for head, paths in members.items()}

    def _options_of(self, paths: list[str]) -> _Options:
        shared = [p for p in self.model.layers[paths[0]] if all(self._may(x, p) for x in paths)]
        if not shared:
            raise ConfigError(
                "expected layers that share a policy of finite risk. "
                f"Received: {', '.join(paths[:3])}, which do not."
            )
        costs = {policy: [self.model.layers[path][policy] for path in paths] for policy in shared}
        merged = {
            policy: Cost(math.fsum(c.seconds for c in each), math.fsum(c.risk for c in each))
            for policy, each in costs.items()
        }
        within = {policy: cost for policy, cost in merged.items() if cost.risk <= self.budget}
        # With none of them the sum of the least risks is above the budget, which is said.
        return within or merged

    def _may(self, path: str, policy: str) -> bool:
        cost = self.model.layers[path].get(policy)
        return cost is not None and math.isfinite(cost.risk)

    def _merged_casts(self) -> dict[tuple[str, str], dict[tuple[str, str], float]]:
        merged: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
        for edge in self.model.edges:
            pair = self.head[edge.producer], self.head[edge.consumer]
            for policies, seconds in edge.casts.items():
                is_open = all(p in self.options[h] for p, h in zip(policies, pair, strict=True))
                if seconds and is_open and (pair[0] != pair[1] or policies[0] == policies[1]):
                    between = merged.setdefault(pair, {})
                    between[policies] = between.get(policies, 0.0) + seconds
        return merged

    def solved(self, time_limit: float) -> tuple[dict[str, str], bool]:
        """Head of each group to policy, and whether that is proven to be the best."""
        program = _Program()
        columns = {
            (head, policy): program.column(cost.seconds, is_integer=True)
            for head, options in self.options.items()
            for policy, cost in options.items()
        }
        for head, options in self.options.items():
            program.row({columns[head, policy]: 1.0 for policy in options}, 1.0, 1.0)
        for (producer, consumer), seconds in self.casts.items():
            self._add_edge(program, columns, producer, consumer, seconds)
        if 0 < self.budget < math.inf:
            risks = {c: self.options[h][p].risk / self.budget for (h, p), c in columns.items()}
            program.row({c: risk for c, risk in risks.items() if risk}, -math.inf, 1.0)
        values, is_optimal = program.solve(time_limit)
        if values is None:
            return self._simple(), False
        chosen = {
            head: max(options, key=lambda policy: values[columns[head, policy]])
            for head, options in self.options.items()
        }
        return chosen, is_optimal

    def _add_edge(
        self,
        program: "_Program",
        columns: Mapping[tuple[str, str], int],
        producer: str,
        consumer: str,
        seconds: Mapping[tuple[str, str], float],
    ) -> None:
        pairs = {
            (p, q): program.column(seconds.get((p, q), 0.0))
            for p in self.options[producer]
            for q in self.options[consumer]
        }
        for p in self.options[producer]:
            row = {column: 1.0 for (one, _), column in pairs.items() if one == p}
            program.row({**row, columns[producer, p]: -1.0}, 0.0, 0.0)
        for q in self.options[consumer]:
            row = {column: 1.0 for (_, other), column in pairs.items() if other == q}
            program.row({**row, columns[consumer, q]: -1.0}, 0.0, 0.0)

    def _simple(self) -> dict[str, str]:
        """The best of one policy for all that may have it, and the least risk for the others."""
        least = {head: _least_risk(options)[0] for head, options in self.options.items()}
        found = [least]
        for policy in dict.fromkeys(p for options in self.options.values() for p in options):
            uniform = {h: policy if policy in o else least[h] for h, o in self.options.items()}
            if math.fsum(self.options[h][p].risk for h, p in uniform.items()) <= self.budget:
                found.append(uniform)
        return min(found, key=self._seconds)

    def _seconds(self, chosen: Mapping[str, str]) -> float:
        return self.model.seconds({path: chosen[head] for path, head in self.head.items()})


class _Program:
    """A mixed integer program, built column by column and row by row; all variables in [0, 1]."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._integer: list[int] = []
        self._entries: list[tuple[int, int, float]] = []
        self._bounds: list[tuple[float, float]] = []

    def column(self, cost: float, *, is_integer: bool = False) -> int:
        self._costs.append(cost)
        self._integer.append(int(is_integer))
        return len(self._costs) - 1

    def row(self, coefficients: Mapping[int, float], low: float, high: float) -> None:
        number = len(self._bounds)
        self._bounds.append((low, high))
        self._entries += [(number, column, value) for column, value in coefficients.items()]

    def solve(self, time_limit: float) -> tuple[np.ndarray | None, bool]:
        rows, columns, values = zip(*self._entries, strict=True)
        shape = len(self._bounds), len(self._costs)
        matrix = sparse.csr_array((values, (rows, columns)), shape=shape)
        low, high = np.array(self._bounds).T
        costs = np.array(self._costs)
        found = optimize.milp(
            costs * (_SCALE / max(costs.max(), 1e-300)),
            integrality=np.array(self._integer),
            bounds=optimize.Bounds(0.0, 1.0),
            constraints=optimize.LinearConstraint(matrix, low, high),
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )
        return found.x, found.status == 0


def _least_risk(options: _Options) -> tuple[str, Cost]:
    return min(options.items(), key=lambda each: each[1].risk)


def _heads(model: CostModel) -> dict[str, str]:
    """Each path to the first path of all that share its policy, through however many groups."""
    joined = {path: path for path in model.layers}

    def head(path: str) -> str:
        while joined[path] != path:
            path = joined[path]
        return path

    order = {path: place for place, path in enumerate(model.layers)}
    for group in model.groups:
        heads = sorted({head(path) for path in group}, key=order.__getitem__)
        joined.update(dict.fromkeys(heads[1:], heads[0]) if heads else {})
    return {path: head(path) for path in model.layers}
