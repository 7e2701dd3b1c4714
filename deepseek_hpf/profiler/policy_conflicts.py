"""Layers whose policy and work do not fit: what they compute in, keep, and are given."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.profiler.evidence import Evidence, exact_rule, policy_for
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.sightings import Target

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


def policy_conflicts(evidence: Evidence) -> Iterator[Conflict]:
    """Finds layers that work in another dtype than their policy says, or are given unlike ones.

    Args:
        evidence: What was seen.

    Yields:
        The conflicts.
    """
    yield from _policies(evidence)
    yield from _variables(evidence)
    yield from _unlike_inputs(evidence)


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
                (exact_rule(target.path, "float32"),),
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
                (exact_rule(target.path, policy_for(actual, layer)),),
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
                    (exact_rule(target.path, policy_for(dtype, layer, variables=True)),),
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
                    (),
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
        rules: tuple[Mapping[str, Any], ...] = ()
        if maker and maker.is_layer and not evidence.is_composite(maker):
            rules = (exact_rule(maker.path, policy_for(low, maker.operation)),)
        kind = "unlike_inputs" if target.is_layer else "promotion"
        yield Conflict(
            kind,
            target.path,
            type(target.operation).__name__,
            tuple(befores),
            f"it is given {' and '.join(befores)}: one of them is silently cast",
            evidence.cast_bytes(passages),
            sum(evidence.cast_seconds(p.before, low, p.elements) for p in odd),
            rules,
            f"let {source.source!r} return {low}",
            "waste" if target.is_layer else "error",
        )
