"""What a recorded step showed, in the form in which conflicts are looked for."""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import keras

from deepseek_hpf.adapters.critical import SOFTMAXES
from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.adapters.walk import children
from deepseek_hpf.profiler.census_operations import Array
from deepseek_hpf.profiler.recorded_step import own_variables
from deepseek_hpf.profiler.sightings import LOSS, Passage, SeenOperation, Target
from deepseek_hpf.scheduling.patterns import escape

_KEPT_IN_FLOAT32 = (
    keras.layers.Softmax,
    keras.layers.Attention,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.BatchNormalization,
    keras.layers.RMSNormalization,
    keras.layers.UnitNormalization,
    keras.layers.SpectralNormalization,
)


@dataclass
class Evidence:
    """What was seen of one step.

    Args:
        targets: What was watched and ran.
        passages: Tensors on their way, with their number.
        operations: Operations of the framework, with their number.
        model_inputs: Name, dtype as given, dtype as used, number of elements.
        outputs: Path of the maker and dtype of each output.
        loss_dtypes: Dtypes of the loss and its parts.
        scales_loss: Whether the optimizer scales the loss.
        has_masters: Whether the optimizer keeps float32 masters of low weights.
        is_compiled: Whether the model trains.
        cast_results: `id` of layers whose result `apply_policy` casts.
    """

    targets: list[Target]
    passages: dict[Passage, int]
    operations: dict[SeenOperation, int]
    model_inputs: list[tuple[str, str, str, int]] = field(default_factory=list)
    outputs: list[tuple[str, str]] = field(default_factory=list)
    loss_dtypes: list[str] = field(default_factory=list)
    scales_loss: bool = False
    has_masters: bool = False
    is_compiled: bool = False
    cast_results: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._by_path = {target.path: target for target in self.targets}
        self._into: dict[str, list[Passage]] = defaultdict(list)
        self._from: dict[str, list[Passage]] = defaultdict(list)
        for passage in self.passages:
            self._into[passage.target].append(passage)
            self._from[passage.source].append(passage)
        self._operations: dict[str, list[SeenOperation]] = defaultdict(list)
        for operation in self.operations:
            self._operations[operation.path].append(operation)
        self._composite = {
            target.path
            for target in self.targets
            if target.is_layer and any(True for _ in children(target.operation))
        }

    @property
    def layers(self) -> list[Target]:
        """The targets that have a dtype policy."""
        return [target for target in self.targets if target.is_layer]

    @functools.cached_property
    def low_exponentials(self) -> dict[str, str]:
        """Layers of a trace (JAX) that run a softmax's parts in a low dtype, and that dtype."""
        found: dict[str, str] = {}
        for path, operations in self._operations.items():
            low = {(o.name, o.outputs[0]) for o in operations if is_low(o.outputs[0])}
            for dtype in ("float16", "bfloat16"):
                if path not in ("", LOSS) and {("exp", dtype), ("reduce_max", dtype)} <= low:
                    found[path] = dtype
        return found

    def target(self, path: str) -> Target | None:
        """The target at a path.

        Args:
            path: The path.

        Returns:
            The target; None where nothing of that path ran.
        """
        return self._by_path.get(path)

    def into(self, path: str) -> list[Passage]:
        """Tensors that a target takes."""
        return self._into[path]

    def out_of(self, path: str) -> list[Passage]:
        """Tensors that others take from a target."""
        return self._from[path]

    def operations_of(self, path: str) -> list[SeenOperation]:
        """Operations that ran inside a target."""
        return self._operations[path]

    def is_composite(self, target: Target) -> bool:
        """Whether a layer holds others, which do the work."""
        return target.path in self._composite

    def is_critical(self, target: Target | None) -> bool:
        """Whether float32 is worth its casts there: softmax, normalization, the outputs."""
        if target is None:
            return False
        layer = target.operation
        softmax = getattr(layer, "activation", None) in SOFTMAXES
        last = any(path == target.path for path, _ in self.outputs)
        kept = isinstance(layer, _KEPT_IN_FLOAT32) or type(layer).__name__ in {
            "Softmax",
            "LogSoftmax",
        }
        return softmax or last or kept

    def variable_dtypes(self, target: Target) -> list[str]:
        """Dtypes of a layer's own float variables, each once."""
        if not target.is_layer:
            return []
        return sorted({str(v.dtype) for v in own_variables(target.operation)})

    def bytes_of(self, target: Target) -> int:
        """Bytes that a target's float results take."""
        width = max((_width(d) for d in target.outputs), default=0)
        return target.output_elements * width

    def cast_bytes(self, passages: Iterable[Passage]) -> int:
        """Bytes that the casts on some passages read and write."""
        return sum(
            self.passages[p] * self.bytes_of_cast(p.before, p.after, p.elements)
            for p in passages
            if p.before != p.after
        )

    def bytes_of_cast(self, before: str, after: str, elements: int) -> int:
        """Bytes that a cast of this size reads and writes."""
        return elements * (_width(before) + _width(after))

    def passage_seconds(self, passages: Iterable[Passage]) -> float:
        """Measured seconds of the casts on some passages."""
        return sum(
            self.passages[p] * self.cast_seconds(p.before, p.after, p.elements)
            for p in passages
            if p.before != p.after
        )

    def cast_seconds(self, before: str, after: str, elements: int) -> float:
        """Measured seconds of a cast of this size.

        Args:
            before: Dtype before.
            after: Dtype after.
            elements: Number of elements.

        Returns:
            The time; 0.0 for nothing.
        """
        if before == after or elements <= 0 or "low" in (before, after):
            return 0.0
        size = 2 ** min(22, max(6, math.ceil(math.log2(elements))))
        return _measured(before, after, size) * elements / size


@functools.cache
def _measured(before: str, after: str, size: int) -> float:
    values = keras.ops.zeros((size,), before)
    best = math.inf
    for _ in range(3):
        begin = time.perf_counter()
        keras.ops.convert_to_numpy(keras.ops.cast(values, after)[:1])
        best = min(best, time.perf_counter() - begin)
    return best


def _width(dtype: str) -> int:
    return Array(dtype, (1,)).bytes


def exact_rule(path: str, policy: str) -> dict[str, Any]:
    """A rule that hits one layer.

    Args:
        path: Path of the layer; what a pattern would read as a wildcard is escaped.
        policy: The policy.

    Returns:
        What goes into `rules`.
    """
    return {"layers": escape(path), "policy": policy}


def policy_for(dtype: str, layer: keras.Layer, *, variables: bool = False) -> str:
    """The standard policy in which a layer computes in a dtype.

    Args:
        dtype: What it computes in; with `variables`, what its variables are.
        layer: The layer.
        variables: Whether `dtype` is that of the variables.

    Returns:
        Name of a policy.
    """
    if variables:
        low = is_low(layer.compute_dtype) and dtype == "float32"
        return f"mixed_{layer.compute_dtype}" if low else dtype
    return f"mixed_{dtype}" if is_low(dtype) else dtype
