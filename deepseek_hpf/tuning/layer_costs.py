"""What the layers of a model have been measured to cost and to risk, as a labelling problem."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deepseek_hpf.plan import PrecisionPlan
from deepseek_hpf.scheduling.cost_model import Cost, CostModel, Edge
from deepseek_hpf.tuning.recorded_calls import Recording

Values = tuple[list[np.ndarray | None], list[np.ndarray | None]]
"""Results and gradients of a call."""

_NOISE = 0.05  # of a time: two that are nearer to each other count as one
_TIE = 1e-7  # seconds by which a layer's own policy is ahead where two cost the same


@dataclass
class LayerCosts:
    """Measured costs of the calls of a model.

    Args:
        recording: The calls.
        plans: Name of a blanket policy to what it makes of the layers; float32 first.
        calls: `(blanket policy, kind of call)` to its cost.
        casts: `(policy, policy)` to the seconds that a tensor costs which goes from a layer of the
            one to a layer of the other, and the seconds for each of its elements.
    """

    recording: Recording
    plans: Mapping[str, PrecisionPlan]
    calls: dict[tuple[str, str], Cost] = field(default_factory=dict)
    casts: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def has_choice(self, path: str) -> bool:
        """Whether the blanket policies give a layer different ones.

        Args:
            path: Path of a layer.

        Returns:
            False for a layer that is in float32 whatever is applied.
        """
        return len({self._label(path, blanket) for blanket in self.plans}) > 1

    def share_measured(self) -> float:
        """The share of the layers that have a choice, by size, whose calls have been measured."""
        sizes = {kind: sample.elements for kind, sample in self.recording.samples.items()}
        open_ = {p: kinds for p, kinds in self.recording.kinds.items() if self.has_choice(p)}
        done = sum(sizes[k] for p, kinds in open_.items() if self._is_measured(p) for k in kinds)
        whole = sum(sizes[kind] for kinds in open_.values() for kind in kinds)
        return done / whole if whole else 1.0

    def labels(self, blanket: str) -> dict[str, str]:
        """The policy of each recorded layer under a blanket policy.

        Args:
            blanket: Its name.

        Returns:
            Path to policy.
        """
        return {path: self._label(path, blanket) for path in self.recording.kinds}

    def cost_model(self, base: str) -> CostModel:
        """The labelling problem.

        Args:
            base: The blanket policy that layers keep that have not been measured.

        Returns:
            Layers and edges.
        """
        return CostModel(
            {path: self._options(path, base) for path in self.recording.kinds},
            tuple(
                Edge(producer, consumer, self._casts_of(elements))
                for producer, consumer, elements in self.recording.edges
            ),
        )

    def _options(self, path: str, base: str) -> dict[str, Cost]:
        own = self._label(path, base)
        if not self.has_choice(path) or not self._is_measured(path):
            return {own: Cost(0.0)}
        options: dict[str, Cost] = {}
        reference = math.nan
        for blanket in self.plans:
            costs = [self.calls[blanket, kind] for kind in self.recording.kinds[path]]
            seconds = math.fsum(cost.seconds for cost in costs)
            if abs(seconds - reference) <= _NOISE * reference:
                seconds = reference
            elif math.isnan(reference):
                reference = seconds
            label = self._label(path, blanket)
            tie = 0.0 if label == own else _TIE
            options[label] = Cost(seconds + tie, math.fsum(cost.risk for cost in costs))
        return options

    def _is_measured(self, path: str) -> bool:
        kinds = self.recording.kinds[path]
        return all((blanket, kind) in self.calls for blanket in self.plans for kind in kinds)

    def _label(self, path: str, blanket: str) -> str:
        return str(self.plans[blanket][path].policy)

    def _casts_of(self, elements: int) -> dict[tuple[str, str], float]:
        return {pair: once + elements * each for pair, (once, each) in self.casts.items()}


def risk_of(values: Values, exact: Values) -> float:
    """How far results and gradients of a call are from exact ones.

    It is the squared relative error of the results, plus that of the gradients, plus the squared
    share of values that have become zero; independent rounding errors add up by their squares.

    Args:
        values: Results and gradients.
        exact: The same in float32.

    Returns:
        The risk; inf where a value is not finite.

    Example:
        >>> import numpy as np
        >>> from deepseek_hpf.tuning.layer_costs import risk_of
        >>> exact = [np.array([3.0, 4.0])], [np.array([1.0])]
        >>> round(risk_of(([np.array([3.0, 4.5])], [np.array([1.0])]), exact), 4)
        0.01
        >>> risk_of(([np.array([3.0, np.inf])], [np.array([1.0])]), exact)
        inf
    """
    return math.fsum(_squares(ours, theirs) for ours, theirs in zip(values, exact, strict=True))


def _squares(values: list[np.ndarray | None], exact: list[np.ndarray | None]) -> float:
    pairs = [
        (ours.astype("float64"), theirs.astype("float64"))
        for ours, theirs in zip(values, exact, strict=True)
        if ours is not None and theirs is not None
    ]
    if not pairs:
        return 0.0
    ours, theirs = (np.concatenate(each) for each in zip(*pairs, strict=True))
    # Where float32 has no number either, there is nothing to compare with.
    ours, theirs = ours[np.isfinite(theirs)], theirs[np.isfinite(theirs)]
    if not np.isfinite(ours).all():
        return math.inf
    length = float(np.sum(theirs**2))
    if not length:
        return float(ours.any())
    lost = float(np.mean((ours == 0) & (theirs != 0)))
    return float(np.sum((ours - theirs) ** 2)) / length + lost**2
