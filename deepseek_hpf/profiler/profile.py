"""`profile`: one recorded step of a model, and what it shows."""

import re
import time
from collections.abc import Mapping
from typing import Any

import keras

from deepseek_hpf.adapters.applied import Applied
from deepseek_hpf.adapters.critical import critical_layers
from deepseek_hpf.adapters.output import output_producers
from deepseek_hpf.adapters.planning import own_policy
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.profiler.census import take_census
from deepseek_hpf.profiler.conflicts import find_conflicts, model_inputs
from deepseek_hpf.profiler.evidence import Evidence
from deepseek_hpf.profiler.findings import Census, Edge, LayerRow, RangeRow
from deepseek_hpf.profiler.nonfinite import hunted
from deepseek_hpf.profiler.recorded_step import RecordedStep, find_targets, own_variables
from deepseek_hpf.profiler.recorder import Recorder
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.sightings import Target
from deepseek_hpf.profiler.standing_model import built
from deepseek_hpf.profiler.summing import summarize


def profile(
    model: keras.Model,
    batch: Any,
    *,
    steps: int = 1,
    ranges: bool = True,
    census: bool = True,
) -> ProfileReport:
    """Profiles a Keras model; arguments and errors are those of `entry.profile`."""
    begin = time.perf_counter()
    x, y, weight = _checked(model, batch, steps)
    notes: list[str] = []
    model = built(model, x, notes)
    targets, factor = find_targets(model), _loss_scale(model)
    recorder = Recorder(targets, ranges=ranges, factor=1.0 / factor)
    step = RecordedStep(model, x, y, weight)
    _run(step, recorder, steps, factor)
    if not step.has_loss:
        notes.append("no loss or no labels: forward only, no gradients")
    ran = [target for target in targets if target.calls]
    if ranges:
        _weights(recorder, ran)
    evidence = _evidence(model, x, step, recorder, ran)
    counted = _census(model, batch, notes) if census and step.has_loss else Census()
    return ProfileReport(
        model=model.name,
        backend=keras.backend.backend(),
        policy=_made_under(model),
        steps=steps,
        layers=tuple(_row(target, evidence, steps) for target in ran if target.is_layer),
        edges=_edges(evidence, steps),
        conflicts=find_conflicts(evidence),
        ranges=_ranges(recorder),
        census=counted,
        nonfinite=hunted(recorder, step, factor),
        notes=tuple(notes),
        seconds=time.perf_counter() - begin,
    )


def _made_under(model: keras.Model) -> str:
    """The policy that a configuration has to name so that its rules are all that it changes."""
    if Applied.is_applied(model):
        return str(model.dtype_policy.name)
    walked = walk(model)
    critical = critical_layers(model, walked)
    layers = [each.layer for each in walked]
    ordinary = [layer for layer in layers if id(layer) not in critical]
    return own_policy(model, layers, ordinary, lambda layer: layer.dtype_policy)


def _checked(model: Any, batch: Any, steps: int) -> tuple[Any, Any, Any]:
    if not isinstance(model, keras.Model):
        raise ConfigTypeError(
            f"Expected `model` to be a keras.Model. Received: model={shown(model)} "
            f"(of type {type(model)}). Load a file with keras.saving.load_model first."
        )
    if not isinstance(batch, tuple | list) or not 1 <= len(batch) <= 3 or batch[0] is None:
        raise ConfigError(
            "Expected `batch` to be (x, y) or (x, y, sample_weight), as in training. "
            f"Received: {type(batch).__name__}. Take one with `next(iter(dataset))`."
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"Expected `steps` to be a positive integer. Received: steps={steps!r}")
    x, y, weight = (*batch, None, None)[:3]
    return x, y, weight


def _run(step: RecordedStep, recorder: Recorder, steps: int, factor: float) -> None:
    try:
        for recorder.sightings.step in range(steps):
            step.run(recorder, factor)
        step.trace(recorder)
    except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
        raise ConfigError(_refusal(error)) from error
    except Exception as error:
        # TensorFlow's own errors are of no common built-in class.
        if type(error).__module__.startswith("tensorflow"):
            raise ConfigError(_refusal(error)) from error
        raise


def _refusal(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Keras's first line may only say where: what happened is the next.
    told = [line for line in lines if not line.startswith("Exception encountered")]
    first = re.sub(r"\x1b\[[0-9;]*m", "", next(iter(told), ""))
    return (
        "Expected a batch that the model can train on. Received one on which its step fails: "
        f"{type(error).__name__}: {first[:300]} Check shapes and dtypes with "
        "`model.train_on_batch`."
    )


def _loss_scale(model: keras.Model) -> float:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not hasattr(optimizer, "scale_loss"):
        return 1.0
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        scale = optimizer.dynamic_scale if optimizer.built else optimizer.initial_scale
        return float(keras.ops.convert_to_numpy(scale)) if scale is not None else 1.0
    return float(optimizer.loss_scale_factor or 1.0)


def _weights(recorder: Recorder, ran: list[Target]) -> None:
    for target in ran:
        for variable in own_variables(target.operation) if target.is_layer else []:
            summary = summarize(variable.value)
            recorder.sightings.note_summary(target.path, "weight", summary, variable.name)


def _evidence(
    model: keras.Model, x: Any, step: RecordedStep, recorder: Recorder, ran: list[Target]
) -> Evidence:
    optimizer = getattr(model, "optimizer", None)
    return Evidence(
        targets=ran,
        passages=recorder.sightings.passages,
        operations=recorder.sightings.operations,
        model_inputs=model_inputs(model, x),
        outputs=_outputs(model, step, ran),
        loss_dtypes=step.loss_dtypes,
        scales_loss=isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        or bool(getattr(optimizer, "loss_scale_factor", None)),
        has_masters=bool(getattr(optimizer, "master_weights", False)),
        is_compiled=optimizer is not None,
        cast_results=frozenset(map(id, Applied.to(model).layers_with_cast_results())),
    )


def _outputs(model: keras.Model, step: RecordedStep, ran: list[Target]) -> list[tuple[str, str]]:
    by_operation = {id(target.operation): target.path for target in ran}
    paths = list(step.output_paths)
    for producer in output_producers(model) or []:
        if producer.position < len(paths) and id(producer.operation) in by_operation:
            paths[producer.position] = by_operation[id(producer.operation)]
    return list(zip(paths, step.output_dtypes, strict=True))


def _census(model: keras.Model, batch: Any, notes: list[str]) -> Census:
    try:
        return take_census(model, batch)
    except ConfigError as error:
        notes.append(f"no census: {error}")
        return Census()


def _row(target: Target, evidence: Evidence, steps: int) -> LayerRow:
    layer = target.operation
    return LayerRow(
        path=target.path,
        class_name=type(layer).__name__,
        policy=layer.dtype_policy.name,
        compute_dtype=str(layer.compute_dtype),
        variable_dtype=str(layer.variable_dtype),
        inputs=tuple(target.inputs),
        computed=tuple(target.computed),
        outputs=tuple(target.outputs),
        variables=tuple(evidence.variable_dtypes(target)),
        calls=target.calls // steps,
        seconds=target.seconds / steps,
        parent=target.parent,
    )


def _edges(evidence: Evidence, steps: int) -> tuple[Edge, ...]:
    sums: dict[tuple[str, str, str, str], int] = {}
    for passage in evidence.passages:
        key = (passage.source, passage.target, passage.before, passage.after)
        sums[key] = sums.get(key, 0) + evidence.cast_bytes([passage]) // steps
    return tuple(Edge(*key, count) for key, count in sums.items())


def _ranges(recorder: Recorder) -> tuple[RangeRow, ...]:
    order: Mapping[str, int] = {t.path: index for index, t in enumerate(recorder.targets)}
    rows = [summary.row(*key) for key, summary in recorder.sightings.summaries.items()]
    return tuple(sorted(rows, key=lambda row: order.get(row.path, len(order))))
