"""Conflicts of a plain PyTorch module, whose operations and not its layers have a dtype."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from deepseek_hpf.profiler.findings import Conflict, RangeRow
from deepseek_hpf.profiler.harm import LOW, harm_of
from deepseek_hpf.profiler.sightings import LOSS, SeenOperation
from deepseek_hpf.scheduling.patterns import escape

# float16 has its full precision from here on; below, each power of two costs a bit.
_FULL_PRECISION_EXPONENT = -14
_MOST_BELOW = 0.5


@dataclass
class ModuleEvidence:
    """What was seen of a step of a module.

    Args:
        classes: Path to class of each module that ran; the root's path is empty.
        operations: Operations of the forward pass and the loss.
        ranges: Range rows.
        outputs: Path of the maker and dtype of each output.
        low_weights: Paths of modules that own trainable weights in a low dtype, and that dtype.
        round_trips: Path to the low dtype and the elements that went to float32 and back.
        has_loss: Whether there was a criterion.
        has_masters: Whether the context keeps float32 masters.
        scale_exponent: Power of two of the loss scale.
    """

    classes: dict[str, str]
    operations: dict[SeenOperation, int]
    ranges: tuple[RangeRow, ...] = ()
    outputs: list[tuple[str, str]] = field(default_factory=list)
    low_weights: dict[str, str] = field(default_factory=dict)
    round_trips: dict[str, tuple[str, int]] = field(default_factory=dict)
    has_loss: bool = False
    has_masters: bool = False
    scale_exponent: int = 0

    def remedy(self, path: str) -> tuple[tuple[dict[str, Any], ...], str]:
        """The rules, and in words, what has a module compute in float32."""
        if not path:
            return (), "cast its argument to float32 with .float(), or move it into a module"
        if any(each == path or each.startswith(f"{path}/") for each in self.low_weights):
            # Without autocast, float32 inputs do not go with low weights.
            return (), "keep the weights of the module in float32 and let a context cast"
        return ({"layers": escape(path), "policy": "float32"},), "compute it in float32"


def module_conflicts(evidence: ModuleEvidence) -> tuple[Conflict, ...]:
    """Finds where a module loses precision, or converts to no use.

    Args:
        evidence: What was seen.

    Returns:
        Numbers at risk first, then wasted bytes, most first.
    """
    finders = (_operations, _outputs, _overflows, _underflows, _weights, _round_trips)
    found = {(c.kind, c.path): c for finder in finders for c in finder(evidence)}
    return tuple(sorted(found.values(), key=lambda c: (c.severity != "error", -c.bytes)))


def _conflict(
    evidence: ModuleEvidence, kind: str, path: str, dtypes: tuple[str, ...], message: str, what: str
) -> Conflict:
    rules, advice = evidence.remedy(path)
    return Conflict(kind, path, what, dtypes, message, 0, 0.0, rules, advice)


def _operations(evidence: ModuleEvidence) -> Iterator[Conflict]:
    for seen in evidence.operations:
        found = None if seen.path == LOSS else harm_of(seen)
        if found is not None:
            message = f"{seen.name} runs in {seen.outputs[0]}: {found[1]}"
            dtypes = (seen.inputs[0], seen.outputs[0])
            yield _conflict(evidence, found[0], seen.path, dtypes, message, seen.name)


def _outputs(evidence: ModuleEvidence) -> Iterator[Conflict]:
    """A low output is harmless where the criterion begins with a cast to float32."""
    works_low = any(
        seen.path == LOSS and seen.name != "_to_copy" and seen.outputs[0] in LOW
        for seen in evidence.operations
    )
    for path, dtype in evidence.outputs:
        if dtype in LOW and (works_low or not evidence.has_loss):
            what = evidence.classes.get(path, "")
            message = f"the output is {dtype}, and so is the loss made of it"
            yield _conflict(evidence, "low_output", path, (dtype,), message, what)


def _overflows(evidence: ModuleEvidence) -> Iterator[Conflict]:
    given = {row.path: row for row in evidence.ranges if row.kind == "input"}
    found = [
        row
        for row in evidence.ranges
        if row.kind == "output" and row.dtype == "float16" and row.infinities
        if row.path not in given or not given[row.path].infinities + given[row.path].nans
    ]
    paths = [row.path for row in found]
    for row in found:
        if any(path != row.path and path.startswith(f"{row.path}/".lstrip("/")) for path in paths):
            continue  # a module inside made it
        message = f"{row.infinities} of {row.size} values are beyond 65504, the largest float16"
        what = evidence.classes[row.path]
        yield _conflict(evidence, "overflow", row.path, ("float16",), message, what)


def _underflows(evidence: ModuleEvidence) -> Iterator[Conflict]:
    for row in evidence.ranges:
        nonzero = sum(row.histogram)
        if row.kind != "output_gradient" or row.dtype != "float16" or not nonzero:
            continue
        first = row.first_exponent + evidence.scale_exponent
        below = sum(row.histogram[: max(0, _FULL_PRECISION_EXPONENT - first)]) / nonzero
        if below >= _MOST_BELOW:
            message = f"{below:.0%} of its output's nonzero gradients are subnormal float16"
            advice = "scale the loss: HybridPrecisionContext does, from loss_scale.initial_scale on"
            yield Conflict(
                "gradient_underflow",
                row.path,
                evidence.classes[row.path],
                ("float16",),
                message,
                0,
                0.0,
                (),
                advice,
            )


def _weights(evidence: ModuleEvidence) -> Iterator[Conflict]:
    for path, dtype in {} if evidence.has_masters else evidence.low_weights.items():
        message = f"weights are {dtype} without float32 masters: small updates are lost"
        advice = 'keep weights in float32, or set "master_weights" in the configuration'
        what = evidence.classes.get(path, "")
        yield Conflict("low_weights", path, what, (dtype,), message, 0, 0.0, (), advice)


def _round_trips(evidence: ModuleEvidence) -> Iterator[Conflict]:
    for path, (dtype, elements) in evidence.round_trips.items():
        message = f"{elements} values go from {dtype} to float32 and straight back"
        yield Conflict(
            "cast_chain",
            path,
            "_to_copy",
            (dtype, "float32", dtype),
            message,
            # 2 bytes read and 4 written, then the other way round.
            12 * elements,
            0.0,
            (),
            "leave out the conversion to float32, nothing is computed in it",
            "waste",
        )
