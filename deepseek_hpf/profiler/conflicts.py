"""Conflicts: where a recorded step lost precision, or converted to no use, and what to write."""

from collections.abc import Iterator
from typing import Any

import keras

from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.profiler.evidence import Evidence, exact_rule
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.harm import SOFTMAX, SUMS
from deepseek_hpf.profiler.islands import island_conflicts
from deepseek_hpf.profiler.operation_conflicts import operation_conflicts
from deepseek_hpf.profiler.policy_conflicts import policy_conflicts
from deepseek_hpf.profiler.sightings import LOSS
from deepseek_hpf.profiler.summing import dtype_of, size_of


def find_conflicts(evidence: Evidence) -> tuple[Conflict, ...]:
    """Lists the conflicts of a recorded step.

    Args:
        evidence: What was seen.

    Returns:
        The conflicts: what harms numbers first, then by the time lost.
    """
    found = [
        *_inputs(evidence),
        *operation_conflicts(evidence),
        *policy_conflicts(evidence),
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
    for name, given, used, elements in evidence.model_inputs:
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
                evidence.bytes_of_cast(given, used, elements),
                evidence.cast_seconds(given, used, elements),
                (),
                f"declare it as it is, keras.Input(..., dtype={given!r}), or hand it over as {used}"
                if integer
                else f"hand it over as {used}",
                "error" if integer else "waste",
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
            (exact_rule(path, "float32"),) if layer is not None else (),
            "compute the last layer in float32",
        )


def _loss(evidence: Evidence) -> Iterator[Conflict]:
    low = next((dtype for dtype in evidence.loss_dtypes if is_low(dtype)), None)
    name = "Loss"
    for operation in evidence.operations_of(LOSS):
        is_heavy = operation.name in SOFTMAX | SUMS
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
            (),
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
                (),
                "apply_policy(model, policy), or a LossScaleOptimizer",
            )
            return


def model_inputs(model: keras.Model, x: Any) -> list[tuple[str, str, str, int]]:
    """Name, dtype as given, dtype as declared and size of each input of a model.

    Args:
        model: The model.
        x: Its inputs.

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
    if len(declared) != len(flat):
        used = model.compute_dtype
        doubles = [value for value in flat if dtype_of(value) == "float64"]
        return [(model.name, "float64", used, size_of(value)) for value in doubles]
    return [
        (tensor.name, dtype_of(value), str(tensor.dtype), size_of(value))
        for tensor, value in zip(declared, flat, strict=True)
    ]
