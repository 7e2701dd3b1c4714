"""Conflicts: where a recorded step lost precision, or converted to no use, and what to write."""

from collections.abc import Iterator
from typing import Any

import keras

from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.profiler.evidence import Evidence, exact_rule, policy_for
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.islands import island_conflicts
from deepseek_hpf.profiler.sightings import LOSS, SeenOperation, Target

# A sum of this many terms in a low dtype stagnates (bfloat16 has 8 bits) or overflows (float16).
LONG_AXIS = 1024
_SOFTMAX = frozenset(
    {
        "Softmax",
        "LogSoftmax",
        "SoftmaxCrossEntropyWithLogits",
        "SparseSoftmaxCrossEntropyWithLogits",
        "_softmax",
        "_log_softmax",
    }
)
_SUMS = frozenset(
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
_MATRIX = frozenset(
    {
        "MatMul",
        "BatchMatMulV2",
        "BatchMatMulV3",
        "Conv2D",
        "Conv3D",
        "DepthwiseConv2dNative",
        "Einsum",
        "mm",
        "addmm",
        "bmm",
        "convolution",
        "dot_general",
        "conv_general_dilated",
    }
)


def find_conflicts(evidence: Evidence) -> tuple[Conflict, ...]:
    """Lists the conflicts of a recorded step.

    Args:
        evidence: What was seen.

    Returns:
        The conflicts: what harms numbers first, then by the time lost.
    """
    found = [
        *_inputs(evidence),
        *_operations(evidence),
        *_policies(evidence),
        *_variables(evidence),
        *_unlike_inputs(evidence),
        *island_conflicts(evidence),
        *_outputs(evidence),
        *_loss(evidence),
        *_loss_scale(evidence),
    ]
    unique = {(each.kind, each.path): each for each in reversed(found)}
    worst_first = sorted(
        unique.values(), key=lambda c: (c.severity != "error", -c.seconds, -c.bytes, c.path, c.kind)
    )
    return tuple(worst_first)


def _inputs(evidence: Evidence) -> Iterator[Conflict]:
    for name, given, used in evidence.model_inputs:
        if given == used or not keras.backend.is_float_dtype(used):
            continue
        integer = not keras.backend.is_float_dtype(given)
        if integer or given == "float64":
            what = "integers above 2^24 (float16: 2^11) are not exact" if integer else "half of it"
            yield Conflict(
                "input_cast",
                name,
                "Cast",
                (given, used),
                f"the input comes as {given} and is cast to {used}: {what} is moved to no use"
                if not integer
                else f"the input comes as {given} and is cast to {used}: {what}",
                0,
                0.0,
                None,
                f"declare it as it is, keras.Input(..., dtype={given!r}), or hand it over as {used}"
                if integer
                else f"hand it over as {used}",
                "error" if integer else "waste",
            )


def _operations(evidence: Evidence) -> Iterator[Conflict]:
    for operation in evidence.operations:
        if operation.path in (LOSS, "") or not is_low(operation.outputs[0]):
            continue
        dtypes = (operation.inputs[0], operation.outputs[0])
        if operation.name in _SOFTMAX:
            message = "its exponentials and their sum lose what float32 keeps"
            yield _raise(evidence, "low_softmax", operation, dtypes, message)
        elif operation.name in _SUMS and operation.reduced >= LONG_AXIS:
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
    rule = exact_rule(operation.path, "float32") if target and target.is_layer else None
    return Conflict(
        kind,
        operation.path,
        operation.name,
        dtypes,
        f"{operation.name} runs in {dtypes[-1]}: {message}",
        0,
        0.0,
        rule,
        "compute it in float32" if rule else "cast its argument to float32, or apply_policy",
    )


def _policies(evidence: Evidence) -> Iterator[Conflict]:
    for target in evidence.layers:
        layer, compute = target.operation, target.operation.compute_dtype
        if compute == "float64":
            yield Conflict(
                "float64",
                target.path,
                type(layer).__name__,
                ("float64",),
                "it computes in float64: twice the bytes, and the tensors behind it follow",
                evidence.bytes_of(target),
                target.seconds,
                exact_rule(target.path, "float32"),
                "compute it in float32; where its weights are float64, build it with float32",
                "waste",
            )
        actual = _other_dtype(evidence, target)
        if actual is not None:
            yield Conflict(
                "ignores_policy",
                target.path,
                type(layer).__name__,
                (compute, actual),
                f"its policy computes in {compute}, and it works in {actual}",
                evidence.bytes_of(target),
                evidence.cast_seconds(compute, actual, target.output_elements),
                exact_rule(target.path, policy_for(actual, layer)),
                f"let its policy say {actual}, or make it compute in `self.compute_dtype`",
            )


def _other_dtype(evidence: Evidence, target: Target) -> str | None:
    layer, compute = target.operation, target.operation.compute_dtype
    if not keras.backend.is_float_dtype(compute) or compute == "float64":
        return None
    if evidence.is_composite(target) or id(layer) in evidence.cast_results:
        return None
    parent = evidence.target(target.parent or "")
    owner = parent.operation.compute_dtype if parent and parent.is_layer else None
    for dtype in target.outputs:
        if dtype != compute and not (evidence.is_critical(target) and dtype == owner):
            return dtype
    if type(layer).__module__.startswith("keras."):
        return None  # e.g. PyTorch has no float16 product on a CPU: Keras computes it in float32
    for operation in evidence.operations_of(target.path):
        if operation.name in _MATRIX and operation.outputs[0] != compute:
            return operation.outputs[0]
    return None


def _variables(evidence: Evidence) -> Iterator[Conflict]:
    for target in evidence.layers:
        layer = target.operation
        wanted = layer.variable_dtype
        for dtype in evidence.variable_dtypes(target):
            if dtype != wanted:
                yield Conflict(
                    "variable_dtype",
                    target.path,
                    "Variable",
                    (wanted, dtype),
                    f"its policy keeps variables in {wanted}, and one is {dtype}",
                    0,
                    0.0,
                    exact_rule(target.path, policy_for(dtype, layer, variables=True)),
                    "let the policy say what the variables are, or build the layer under it",
                )
            elif is_low(dtype) and not evidence.has_masters:
                yield Conflict(
                    "low_variables",
                    target.path,
                    "Variable",
                    (dtype,),
                    f"its weights are {dtype}: an update below half their resolution is lost",
                    0,
                    0.0,
                    None,
                    f'build it under "mixed_{dtype}", or set "master_weights": true',
                )


def _unlike_inputs(evidence: Evidence) -> Iterator[Conflict]:
    for target in evidence.targets:
        passages = [p for p in evidence.into(target.path) if p.source]
        befores = sorted({p.before for p in passages})
        if len(befores) < 2 or evidence.is_composite(target):
            continue
        odd = [p for p in passages if p.before == "float32"] or passages
        if any(evidence.is_critical(evidence.target(p.source)) for p in odd):
            continue
        source = odd[0]
        low = next(d for d in befores if d != source.before)
        maker = evidence.target(source.source)
        rule = None
        if maker and maker.is_layer and not evidence.is_composite(maker):
            rule = exact_rule(maker.path, policy_for(low, maker.operation))
        kind = "unlike_inputs" if target.is_layer else "promotion"
        yield Conflict(
            kind,
            target.path,
            type(target.operation).__name__,
            tuple(befores),
            f"it is given {' and '.join(befores)}: one of them is silently cast",
            evidence.cast_bytes(passages),
            sum(evidence.cast_seconds(p.before, low, p.elements) for p in odd),
            rule,
            f"let {source.source!r} return {low}",
            "waste" if target.is_layer else "error",
        )


def _outputs(evidence: Evidence) -> Iterator[Conflict]:
    for path, dtype in evidence.outputs:
        if not is_low(dtype):
            continue
        target = evidence.target(path)
        layer = target.operation if target and target.is_layer else None
        yield Conflict(
            "low_output",
            path,
            type(target.operation).__name__ if target else "output",
            (dtype,),
            f"the model's output is {dtype}: the loss and its gradient begin with its rounding",
            0,
            0.0,
            exact_rule(path, "float32") if layer is not None else None,
            "compute the last layer in float32",
        )


def _loss(evidence: Evidence) -> Iterator[Conflict]:
    low = next((dtype for dtype in evidence.loss_dtypes if is_low(dtype)), None)
    name = "Loss"
    for operation in evidence.operations_of(LOSS):
        is_heavy = operation.name in _SOFTMAX | _SUMS
        if is_heavy and is_low(operation.outputs[0]):
            low, name = operation.outputs[0], operation.name
    if low is not None:
        yield Conflict(
            "low_loss",
            LOSS,
            name,
            (low,),
            f"the loss, or a part of it, is computed in {low}",
            0,
            0.0,
            None,
            'give the loss dtype="float32", and what is added by `add_loss` in float32',
        )


def _loss_scale(evidence: Evidence) -> Iterator[Conflict]:
    if evidence.scales_loss or not evidence.is_compiled:
        return
    for target in evidence.layers:
        if target.operation.compute_dtype == "float16" and not evidence.is_composite(target):
            yield Conflict(
                "no_loss_scale",
                target.path,
                type(target.operation).__name__,
                ("float16",),
                "it computes in float16, and nothing scales the loss: gradients underflow",
                0,
                0.0,
                None,
                "apply_policy(model, policy), or a LossScaleOptimizer",
            )
            return


def model_inputs(model: keras.Model, x: Any, dtype_of: Any) -> list[tuple[str, str, str]]:
    """Name, dtype as given and dtype as declared of each input of a model.

    Args:
        model: The model.
        x: Its inputs.
        dtype_of: Names a tensor's dtype.

    Returns:
        One entry for each input; of a model that declares none, what its policy casts.
    """
    flat = [leaf for leaf in keras.tree.flatten(x) if hasattr(leaf, "dtype")]
    declared = keras.tree.flatten(getattr(model, "inputs", None) or [])
    if isinstance(x, dict) and len(declared) == len(flat):
        by_name = {tensor.name: tensor for tensor in declared}
        declared = [
            by_name.get(key, tensor) for key, tensor in zip(sorted(x), declared, strict=True)
        ]
    if len(declared) == len(flat):
        return [(d.name, dtype_of(v), str(d.dtype)) for d, v in zip(declared, flat, strict=True)]
    return [(model.name, "float64", model.compute_dtype) for v in flat if dtype_of(v) == "float64"]
