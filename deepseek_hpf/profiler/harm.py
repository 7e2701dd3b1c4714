"""Which operations a low dtype harms: the one place that decides, for Keras and plain PyTorch."""

from deepseek_hpf.profiler.sightings import SeenOperation

LOW = ("float16", "bfloat16")
SOFTMAX_HARM = "its exponentials and their sum lose what float32 keeps"
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


def harm_of(operation: SeenOperation) -> tuple[str, str] | None:
    """What a low dtype does to an operation.

    Args:
        operation: An operation, as it ran.

    Returns:
        Kind of the conflict and why it harms; None where nothing is wrong.
    """
    if operation.outputs[0] not in LOW:
        return None
    if operation.name in SOFTMAX:
        return "low_softmax", SOFTMAX_HARM
    if operation.name in SUMS and operation.reduced >= LONG_AXIS:
        harm = f"sums {operation.reduced} elements: small terms are lost, or it overflows"
        return "low_reduction", harm
    if operation.name in _ROOTS:
        return "low_normalization", "a variance is squared values: it underflows before they do"
    return None
