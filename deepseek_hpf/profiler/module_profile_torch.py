"""`profile` of a plain PyTorch module."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.profiler.census_operations import census_of
from deepseek_hpf.profiler.findings import Census, Edge, LayerRow, NonFinite, RangeRow
from deepseek_hpf.profiler.harm import LOW
from deepseek_hpf.profiler.module_conflicts import ModuleEvidence, module_conflicts
from deepseek_hpf.profiler.module_recorder_torch import ModuleRecorder
from deepseek_hpf.profiler.module_state_torch import left_as_it_was, scale_of, twin_of
from deepseek_hpf.profiler.operations_torch import OperationRecorder
from deepseek_hpf.profiler.report import ProfileReport
from deepseek_hpf.profiler.sightings import LOSS, Target
from deepseek_hpf.profiler.tapping_torch import listening
from deepseek_hpf.profiler.tensors import dtype_of, is_float
from deepseek_hpf.torch.context import HybridPrecisionContext

Criterion = Callable[[Any, Any], Any]
_ORIGIN = (
    "The operations that PyTorch dispatched in forward, loss and backward of one eager step; times "
    "are those of each operation, waited for."
)


def profile_module(
    module: torch.nn.Module,
    batch: Any,
    *,
    steps: int = 1,
    ranges: bool = True,
    census: bool = True,
    criterion: Criterion | None = None,
    context: HybridPrecisionContext | None = None,
) -> ProfileReport:
    """Profiles a module; arguments and errors are those of `profile`."""
    begin = time.perf_counter()
    _check(batch, steps, criterion, context)
    twin = None if context is None else twin_of(context)
    step = _Step(module, batch, criterion, twin)
    recorder = ModuleRecorder(module, ranges=ranges)
    counter = OperationRecorder(True, lambda: "")
    with left_as_it_was(module):
        try:
            for recorder.sightings.step in range(steps):
                with left_as_it_was(module):
                    step.run(recorder)
            if census:
                with left_as_it_was(module), counter:
                    step.run(None)
        except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
            raise ConfigError(_refusal(error)) from error
    found = _ranges(recorder, module) if ranges else ()
    return ProfileReport(
        model=type(module).__name__,
        backend="torch",
        policy=_policy(module, context),
        steps=steps,
        layers=tuple(_row(target, steps) for target in recorder.ran.values() if target.path),
        edges=_edges(recorder, steps),
        conflicts=module_conflicts(_evidence(module, step, recorder, found, context)),
        ranges=found,
        census=census_of(counter.operations, _ORIGIN, ()) if census else Census(),
        nonfinite=_first_nonfinite(recorder),
        notes=_notes(module, step, context),
        seconds=time.perf_counter() - begin,
    )


class _Step:
    """Forward, loss and backward, as the user's loop would run them."""

    def __init__(
        self,
        module: torch.nn.Module,
        batch: Any,
        criterion: Criterion | None,
        context: HybridPrecisionContext | None,
    ):
        self._module, self._criterion, self._context = module, criterion, context
        self._inputs, self._labels = batch
        self.scale = scale_of(context, module)
        self.outputs: list[tuple[str, str]] = []
        self.has_loss = criterion is not None

    def run(self, recorder: ModuleRecorder | None) -> None:
        """Runs it, watched if there is a recorder."""
        if recorder is None:
            with self._context or contextlib.nullcontext(), torch.enable_grad():
                self._backward(self._loss(self._forward()))
            return
        recorder.phase = "forward"
        with (
            self._context or contextlib.nullcontext(),
            torch.enable_grad(),
            recorder.attached(),
            listening(recorder.heard),
        ):
            output = self._forward()
            leaves = torch.utils._pytree.tree_leaves(output)
            self.outputs = [(recorder.maker_of(t), dtype_of(t)) for t in leaves if is_float(t)]
            recorder.phase = LOSS
            recorder.stack.append(LOSS)
            loss = self._loss(output)
            recorder.stack.pop()
            if loss is not None:
                recorder.sightings.look(LOSS, LOSS, recorder.summarized(loss))
                # As the context does: a float16 loss takes no larger factor.
                largest = 2.0**15 if loss.dtype == torch.float16 else math.inf
                self.scale = min(self.scale, largest)
                recorder.factor = 1.0 / self.scale
            recorder.phase = "backward"
            for name, gradient in self._backward(loss).items():
                owner, _, weight = name.rpartition(".")
                summary = recorder.summarized(gradient, 1.0 / self.scale)
                path = owner.replace(".", "/")
                recorder.sightings.note_summary(path, "weight_gradient", summary, weight)
                recorder.sightings.look(path, "weight_gradient", summary)

    def _forward(self) -> Any:
        if isinstance(self._inputs, dict):
            return self._module(**self._inputs)
        given = self._inputs if isinstance(self._inputs, tuple) else (self._inputs,)
        return self._module(*given)

    def _loss(self, output: Any) -> Any:
        loss = None if self._criterion is None else self._criterion(output, self._labels)
        if loss is not None and (not isinstance(loss, torch.Tensor) or loss.numel() != 1):
            raise ConfigError(
                "Expected `criterion(output, labels)` to return one number, a tensor. "
                f"Received: {type(loss).__name__} of shape "
                f"{tuple(getattr(loss, 'shape', ()))}. Take its mean."
            )
        return loss

    def _backward(self, loss: Any) -> dict[str, Any]:
        named = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        if loss is None or not named or not loss.requires_grad:
            return {}
        # Not `backward`: it would add to what is in `.grad`.
        found = torch.autograd.grad(loss * self.scale, list(named.values()), allow_unused=True)
        return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def _check(batch: Any, steps: Any, criterion: Any, context: Any) -> None:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ConfigError(
            "Expected `batch` to be (inputs, labels), the inputs being a tensor, a tuple or a "
            f"dict. Received: {type(batch).__name__}. Without labels give (inputs, None)."
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"Expected `steps` to be a positive integer. Received: steps={steps!r}")
    if criterion is not None and not callable(criterion):
        raise ConfigTypeError(
            "Expected `criterion` to be a function of (output, labels), as "
            f"torch.nn.functional.cross_entropy is. Received: {type(criterion)}"
        )
    if context is not None and not isinstance(context, HybridPrecisionContext):
        raise ConfigTypeError(
            f"Expected `context` to be a HybridPrecisionContext. Received: {type(context)}. To "
            "profile under torch.autocast, call `profile` within its `with` block."
        )


def _refusal(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return (
        "Expected a batch that the module can train on. Received one on which its step fails: "
        f"{type(error).__name__}: {first[:300]} Check shapes, dtypes and devices with "
        "`criterion(module(inputs), labels)`."
    )


def _policy(module: torch.nn.Module, context: HybridPrecisionContext | None) -> str:
    weight = next((p for p in module.parameters() if p.is_floating_point()), None)
    if context is None or weight is None:
        return "float32" if weight is None else dtype_of(weight)
    low = str(context.autocast_dtype(weight.device)).removeprefix("torch.")
    return f"mixed_{low}" if low in LOW else low


def _row(target: Target, steps: int) -> LayerRow:
    own = [p for p in target.operation.parameters(recurse=False) if p.is_floating_point()]
    variables = tuple(dict.fromkeys(map(dtype_of, own)))
    ran = (*target.computed, *target.outputs, *target.inputs, "float32")
    return LayerRow(
        path=target.path,
        class_name=type(target.operation).__name__,
        policy=ran[0],
        compute_dtype=ran[0],
        variable_dtype=variables[0] if variables else "float32",
        inputs=tuple(target.inputs),
        computed=tuple(target.computed),
        outputs=tuple(target.outputs),
        variables=variables,
        calls=target.calls // steps,
        seconds=target.seconds / steps,
        parent=target.parent or None,
    )


def _edges(recorder: ModuleRecorder, steps: int) -> tuple[Edge, ...]:
    # A cast is inside the module that computes: what it ran in says so, not what it was given.
    edges: dict[Edge, int] = {}
    for passage, number in recorder.sightings.passages.items():
        if not passage.target:  # the whole model, whose inputs go on to its modules
            continue
        computed = recorder.ran[passage.target].computed
        after = computed[0] if computed else passage.before
        width = sum(2 if dtype in LOW else 4 for dtype in (passage.before, after))
        size = passage.elements * width * number // steps if after != passage.before else 0
        edge = Edge(passage.source, passage.target, passage.before, after, 0)
        edges[edge] = edges.get(edge, 0) + size
    return tuple(Edge(e.source, e.target, e.before, e.after, size) for e, size in edges.items())


def _ranges(recorder: ModuleRecorder, module: torch.nn.Module) -> tuple[RangeRow, ...]:
    for path, target in recorder.ran.items():
        for name, weight in target.operation.named_parameters(recurse=False):
            if weight.is_floating_point():
                summary = recorder.summarized(weight)
                recorder.sightings.note_summary(path, "weight", summary, name)
    order = {path: index for index, path in enumerate(recorder.ran)}
    rows = [s.row(*key) for key, s in recorder.sightings.summaries.items()]
    return tuple(sorted(rows, key=lambda row: order.get(row.path, len(order))))


def _evidence(
    module: torch.nn.Module,
    step: _Step,
    recorder: ModuleRecorder,
    ranges: tuple[RangeRow, ...],
    context: HybridPrecisionContext | None,
) -> ModuleEvidence:
    low: dict[str, str] = {}
    for name, weight in module.named_parameters():
        if weight.requires_grad and dtype_of(weight) in LOW:
            low[name.rpartition(".")[0].replace(".", "/")] = dtype_of(weight)
    return ModuleEvidence(
        classes={t.path: type(t.operation).__name__ for t in recorder.targets.values()},
        operations=recorder.sightings.operations,
        ranges=ranges,
        outputs=step.outputs,
        low_weights=low,
        round_trips=recorder.round_trips,
        has_loss=step.has_loss,
        has_masters=context is not None and bool(context.config.master_weights),
        scale_exponent=math.frexp(step.scale)[1] - 1,
    )


def _first_nonfinite(recorder: ModuleRecorder) -> NonFinite | None:
    arrival, made = recorder.sightings.first_nonfinite, recorder.made_nonfinite
    if arrival is None:
        return None
    history = tuple(s.row(path, "output") for path, s in arrival.history)
    operation = made[1] if made else ""
    path = made[0] if made and arrival.phase != "backward" else arrival.path
    reason = "" if made else "it was in the batch or in the weights"
    value = made[2] if made else arrival.value
    return NonFinite(arrival.phase, path, operation, value, arrival.step, history, reason)


def _notes(
    module: torch.nn.Module, step: _Step, context: HybridPrecisionContext | None
) -> tuple[str, ...]:
    notes = ["a plain PyTorch module: a layer's dtype is what its operations ran in"]
    if not step.has_loss:
        notes.append("no criterion: forward only, no gradients")
    if not module.training:
        notes.append("the module is in evaluation mode; call `module.train()` to see it train")
    half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
    if context is None and half:
        notes.append("float16 without a context: whether the loss is scaled cannot be seen")
    return tuple(notes)
