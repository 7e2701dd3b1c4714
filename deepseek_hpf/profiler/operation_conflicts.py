"""Operations in low precision that lose more than they gain: softmax, long sums, roots."""

from collections.abc import Iterator

from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.profiler.evidence import Evidence, exact_rule
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.sightings import LOSS, SeenOperation

# A sum of this many terms in a low dtype stagnates (bfloat16 has 8 bits) or overflows (float16).
LONG_AXIS = 1024
SOFTMAX = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "SoftmaxCrossEntropyWithLogits",
        "SparseSoftmaxCrossEntropyWithLogits",
        "_softmax",
        "_log_softmax",
    }
)
SUMS = frozenset(
    {
        "Sum",
        "Mean",
        "Prod",
        "Cumsum",
        "Cumprod",
        "AvgPool",
        "sum",
        "mean",
        "prod",
        "cumsum",
        "cumprod",
        "reduce_sum",
        "reduce_prod",
    }
)
_ROOTS = frozenset({"Rsqrt", "rsqrt"})


def operation_conflicts(evidence: Evidence) -> Iterator[Conflict]:
    """Finds operations inside layers that are harmed by the low dtype they run in.

    Args:
        evidence: What was seen.

    Yields:
        One conflict for each operation; several of a kind in one layer among them.
    """
    for operation in evidence.operations:
        if operation.path in (LOSS, "") or not is_low(operation.outputs[0]):
            continue
        dtypes = (operation.inputs[0], operation.outputs[0])
        if operation.name in SOFTMAX:
            message = "its exponentials and their sum lose what float32 keeps"
            yield _raise(evidence, "low_softmax", operation, dtypes, message)
        elif operation.name in SUMS and operation.reduced >= LONG_AXIS:
            message = f"sums {operation.reduced} elements: small terms are lost, or it overflows"
            yield _raise(evidence, "low_reduction", operation, dtypes, message)
        elif operation.name in _ROOTS:
            message = "a variance is squared values: it underflows before they do"
            yield _raise(evidence, "low_normalization", operation, dtypes, message)
    for path in sorted(evidence.low_exponentials):
        operation = SeenOperation(path, "exp", ("low",), (evidence.low_exponentials[path],), 1)
        message = "its exponentials and their sum lose what float32 keeps"
        yield _raise(evidence, "low_softmax", operation, operation.outputs, message)


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
