"""Operations in low precision that lose more than they gain: softmax, long sums, roots."""

from collections.abc import Iterator

from deepseek_hpf.profiler.evidence import Evidence, exact_rule
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.harm import SOFTMAX_HARM, harm_of
from deepseek_hpf.profiler.sightings import LOSS, SeenOperation


def operation_conflicts(evidence: Evidence) -> Iterator[Conflict]:
    """Finds operations inside layers that are harmed by the low dtype they run in.

    Args:
        evidence: What was seen.

    Yields:
        One conflict for each operation; several of a kind in one layer among them.
    """
    for operation in evidence.operations:
        found = None if operation.path in (LOSS, "") else harm_of(operation)
        if found is not None:
            dtypes = (operation.inputs[0], operation.outputs[0])
            yield _raise(evidence, found[0], operation, dtypes, found[1])
    for path in sorted(evidence.low_exponentials):
        operation = SeenOperation(path, "exp", ("low",), (evidence.low_exponentials[path],), 1)
        yield _raise(evidence, "low_softmax", operation, operation.outputs, SOFTMAX_HARM)


def _raise(
    evidence: Evidence,
    kind: str,
    operation: SeenOperation,
    dtypes: tuple[str, ...],
    message: str,
) -> Conflict:
    target = evidence.target(operation.path)
    rules = (exact_rule(operation.path, "float32"),) if target and target.is_layer else ()
    return Conflict(
        kind,
        operation.path,
        operation.name,
        dtypes,
        f"{operation.name} runs in {dtypes[-1]}: {message}",
        0,
        0.0,
        rules,
        "compute it in float32" if rules else "cast its argument to float32, or apply_policy",
    )
