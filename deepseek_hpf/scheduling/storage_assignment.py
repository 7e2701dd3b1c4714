"""How each layer keeps its activations, at the least error within a goal of bytes, exactly."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, sparse

from deepseek_hpf.errors import ConfigError

PRICE = 1e-6
"""What a packed layer costs, in largest errors: where nothing is gained, nothing is packed."""
_SCALE = 1e3  # of the largest cost in the solver, whose gap of 1e-6 is absolute

Options = Mapping[str | None, "StorageOption"]


@dataclass(frozen=True)
class StorageOption:
    """One way in which a layer can keep what its backward pass needs.

    Args:
        error: What it does to the gradient, such that errors of layers add up: a squared one. inf
            where it must not be taken.
        keeps: What is in memory then. What several layers keep is there once.
    """

    error: float
    keeps: frozenset[Hashable]


@dataclass(frozen=True)
class StorageAssignment:
    """A storage for each layer.

    Args:
        storages: Layer to storage; None where it keeps things as computed.
        error: Sum of the errors.
        kept_bytes: Of all that is kept.
        all_bytes: The same with no layer packed.
        is_optimal: Whether it is proven that no error is smaller within the goal; False where the
            time did not suffice for that.
    """

    storages: Mapping[str, str | None]
    error: float
    kept_bytes: int
    all_bytes: int
    is_optimal: bool


def assign_storages(
    layers: Mapping[str, Options],
    sizes: Mapping[Hashable, int],
    goal: float,
    *,
    time_limit: float = 10.0,
) -> StorageAssignment:
    """Finds the storages of least error within a goal.

    With `x[layer, storage]` of 0 or 1, and `y[thing]` for whether anybody keeps a thing, it is the
    integer program

        minimize    sum (error + price of packing) x
        subject to  sum_s x[v, s] = 1
                    sum_{s keeps thing} x[v, s] <= y[thing]   for each layer v
                    sum size y <= goal * bytes as computed

    so that to pack what another layer keeps whole is what it is: more bytes.

    Args:
        layers: Of each layer, its options by storage; None, as computed, among them.
        sizes: Bytes of all that may be kept.
        goal: The most that may be kept, as a share of what is kept as computed.
        time_limit: Seconds. After them the best found counts.

    Returns:
        The assignment. Its bytes are within the goal, not only nearly.

    Raises:
        ConfigError: No storages are within the goal.

    Example:
        >>> from deepseek_hpf.scheduling.storage_assignment import StorageOption, assign_storages
        >>> def layer(whole, packed, error):
        ...     whole, packed = frozenset({whole}), frozenset({packed})
        ...     return {None: StorageOption(0.0, whole), "int8": StorageOption(error, packed)}
        >>> sizes = {"x": 400, "x8": 104, "y": 400, "y8": 104}
        >>> layers = {"first": layer("x", "x8", 0.3), "second": layer("y", "y8", 0.1)}
        >>> dict(assign_storages(layers, sizes, 0.7).storages)
        {'first': None, 'second': 'int8'}
    """
    if not layers:
        return StorageAssignment({}, 0.0, 0, 0, is_optimal=True)
    problem = _Problem(layers, sizes)
    least = problem.bytes_of(problem.least())
    most = goal * problem.all_bytes
    if least > most:
        raise ConfigError(
            f"Expected a memory goal of at least {_upwards(least / problem.all_bytes)}, the least "
            f"that these layers can keep ({least} of {problem.all_bytes} bytes). "
            f"Received: {goal:g}. Recompute layers by rules, or use a smaller batch."
        )
    chosen, is_optimal = problem.within(most, time_limit)
    return StorageAssignment(
        chosen, problem.error_of(chosen), problem.bytes_of(chosen), problem.all_bytes, is_optimal
    )


@dataclass
class _Problem:
    layers: Mapping[str, Options]
    sizes: Mapping[Hashable, int]
    options: dict[tuple[str, str | None], StorageOption] = field(init=False)
    things: list[Hashable] = field(init=False)
    all_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.options = {
            (layer, storage): option
            for layer, options in self.layers.items()
            for storage, option in options.items()
            if math.isfinite(option.error)
        }
        kept = [thing for option in self.options.values() for thing in option.keeps]
        self.things = list(dict.fromkeys(kept))
        self.all_bytes = self.bytes_of(dict.fromkeys(self.layers))

    def bytes_of(self, chosen: Mapping[str, str | None]) -> int:
        kept = [self.options[choice].keeps for choice in chosen.items()]
        return sum(self.sizes[thing] for thing in frozenset().union(*kept))

    def error_of(self, chosen: Mapping[str, str | None]) -> float:
        return math.fsum(self.options[choice].error for choice in chosen.items())

    def least(self) -> dict[str, str | None]:
        """The storages of the fewest bytes."""
        sizes = np.array([self.sizes[thing] for thing in self.things], "float64")
        costs = np.concatenate([np.zeros(len(self.options)), sizes])
        found, _ = self._solved(costs, math.inf, [], 10.0)
        return found or dict.fromkeys(self.layers)

    def within(self, most: float, time_limit: float) -> tuple[dict[str, str | None], bool]:
        """The storages of least error; whether that is proven."""
        errors = [option.error for option in self.options.values()]
        price = PRICE * max(errors) or 1.0
        packed = [price * (storage is not None) for _, storage in self.options]
        costs = np.concatenate([np.add(errors, packed), np.zeros(len(self.things))])
        beyond: list[dict[str, str | None]] = []
        while True:
            found, is_optimal = self._solved(costs, most, beyond, time_limit)
            if found is None:
                return self.least(), False
            if self.bytes_of(found) <= most:
                return found, is_optimal
            beyond.append(found)  # the solver takes a sum that is beyond by a millionth

    def _solved(
        self,
        costs: np.ndarray,
        most: float,
        excluded: list[dict[str, str | None]],
        time_limit: float,
    ) -> tuple[dict[str, str | None] | None, bool]:
        rows = _Rows(len(costs))
        column = {choice: place for place, choice in enumerate(self.options)}
        of_thing = {thing: len(column) + place for place, thing in enumerate(self.things)}
        for layer, options in self.layers.items():
            own = {s: column[layer, s] for s in options if (layer, s) in column}
            rows.add(dict.fromkeys(own.values(), 1.0), 1.0, 1.0)
            for thing in frozenset().union(*(options[s].keeps for s in own)):
                keeping = {own[s]: 1.0 for s in own if thing in options[s].keeps}
                rows.add({**keeping, of_thing[thing]: -1.0}, -math.inf, 0.0)
        if math.isfinite(most):
            share = max(most, 1.0)
            sizes = {of_thing[thing]: self.sizes[thing] / share for thing in self.things}
            rows.add(sizes, -math.inf, most / share)
        for chosen in excluded:
            columns = [column[choice] for choice in chosen.items()]
            rows.add(dict.fromkeys(columns, 1.0), -math.inf, len(columns) - 1.0)
        integral = np.arange(len(costs)) < len(column)
        values, is_optimal = rows.minimized(costs, integral, time_limit)
        if values is None:
            return None, False
        chosen = {
            layer: max(
                (s for s in options if (layer, s) in column), key=lambda s: values[column[layer, s]]
            )
            for layer, options in self.layers.items()
        }
        return chosen, is_optimal


class _Rows:
    """The constraints of a program whose variables lie between 0 and 1."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._entries: list[tuple[int, int, float]] = []
        self._bounds: list[tuple[float, float]] = []

    def add(self, coefficients: Mapping[int, float], low: float, high: float) -> None:
        number = len(self._bounds)
        self._bounds.append((low, high))
        self._entries += [(number, column, value) for column, value in coefficients.items()]

    def minimized(
        self, costs: np.ndarray, integral: np.ndarray, time_limit: float
    ) -> tuple[np.ndarray | None, bool]:
        rows, columns, values = zip(*self._entries, strict=True)
        shape = len(self._bounds), self._columns
        matrix = sparse.csr_array((values, (rows, columns)), shape=shape)
        low, high = np.array(self._bounds).T
        found = optimize.milp(
            costs * (_SCALE / max(costs.max(), 1e-300)),
            integrality=integral.astype(int),
            bounds=optimize.Bounds(0.0, 1.0),
            constraints=optimize.LinearConstraint(matrix, low, high),
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )
        return found.x, found.status == 0


def _upwards(share: float) -> float:
    """Three digits, rounded such that the goal can be met."""
    return math.ceil(share * 1000) / 1000
