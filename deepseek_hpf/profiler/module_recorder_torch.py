"""What happens in a recorded step of a plain PyTorch module: hooks and a dispatch mode."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from weakref import ref

import torch
from torch.utils._pytree import tree_leaves

from deepseek_hpf.profiler.harm import LOW
from deepseek_hpf.profiler.sightings import Passage, Sightings, Target
from deepseek_hpf.profiler.statistics import Summary
from deepseek_hpf.profiler.tapping_torch import reduce
from deepseek_hpf.profiler.tensors import dtype_of, is_float

_CHUNK = 2**20
_NO_ARITHMETIC = frozenset(("_to_copy", "copy_", "detach", "clone", "empty_like", "zeros_like"))


def summarize_tensor(tensor: Any, factor: float = 1.0) -> Summary:
    """Reduces a tensor to its summary, without Keras.

    Args:
        tensor: Float tensor of any shape.
        factor: What the values are multiplied with first, to take a loss scale back.

    Returns:
        The summary, in the dtype that the tensor came in.
    """
    summary = Summary(dtype_of(tensor))
    flat = tensor.detach().reshape(-1)
    if flat.dtype == torch.float64:
        # What float32 cannot hold is out of range for every format, but it is finite.
        flat = torch.where(flat.isfinite(), flat.clamp(-3.4e38, 3.4e38), flat)
    for chunk in flat.split(_CHUNK) if flat.numel() else ():
        values = chunk.float()
        summary.add(reduce(values * factor if factor != 1.0 else values), values.numel())
    return summary


class ModuleRecorder:
    """Watches the calls of the modules of a model.

    Args:
        root: The model.
        ranges: Whether values are summarized.

    Attributes:
        factor: What gradients are multiplied with, to take the loss scale back.
    """

    def __init__(self, root: torch.nn.Module, *, ranges: bool):
        self.targets = {
            module: Target(name.replace(".", "/"), module, _parent(name))
            for name, module in root.named_modules()
        }
        self.ran: dict[str, Target] = {}
        self.sightings = Sightings()
        self.round_trips: dict[str, tuple[str, int]] = {}
        self.made_nonfinite: tuple[str, str, str] | None = None
        self.phase = "forward"
        self.stack: list[str] = []
        self._begun: list[tuple[float, float]] = []
        self.factor = 1.0
        self._ranges = ranges
        self._made: dict[int, tuple[Any, str]] = {}
        self._passed_on: dict[int, tuple[Any, str]] = {}
        self._widened: dict[int, tuple[Any, str]] = {}
        self._handles: list[Any] = []
        self._paused = 0.0
        self._busy = False  # what runs then is ours

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every module within the context, none after it."""
        try:
            for module in self.targets:
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                self._handles.append(before)
                self._handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            while self._handles:
                self._handles.pop().remove()
            self.stack.clear()
            self._begun.clear()
            self._made.clear()
            self._passed_on.clear()
            self._widened.clear()

    def heard(self, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes note of an operation.

        Args:
            name: Its name.
            inputs: Its tensors.
            outputs: Its results.
        """
        if self._busy:
            return
        begin = time.perf_counter()
        path = self.stack[-1] if self.stack else ""
        if self.phase != "backward":
            self.sightings.note_operation(path, name, inputs, outputs)
            self._compute_dtype(path, name, inputs, outputs)
            self._pass_on(path, inputs, outputs)
            if name == "_to_copy" and inputs and is_float(outputs[0]):
                self._cast(path, inputs[0], outputs[0])
        if self._ranges and self.made_nonfinite is None:
            value = nonfinite(outputs)
            if value and not nonfinite(inputs):
                self.made_nonfinite = (path, name, value)
        self._paused += time.perf_counter() - begin

    def maker_of(self, tensor: Any) -> str:
        """Path of the innermost module that made a tensor; empty where none did."""
        return _known(self._made, tensor)

    def _source_of(self, tensor: Any) -> str:
        """Path of what a tensor comes from, functions such as `relu` on the way left out."""
        return self.maker_of(tensor) or _known(self._passed_on, tensor)

    def _pass_on(self, path: str, inputs: list[Any], outputs: list[Any]) -> None:
        """What a module that holds others computes itself lies between two of them."""
        target = self.ran.get(path)
        if target is None or next(target.operation.children(), None) is None:
            return
        source = next(filter(None, map(self._source_of, inputs)), path)
        for made in filter(is_float, outputs):
            self._passed_on[id(made)] = (ref(made), source)

    def _compute_dtype(self, path: str, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        target = self.ran.get(path)
        if target is None or name in _NO_ARITHMETIC:
            return
        for tensor in [x for x in (*inputs, *outputs) if is_float(x)][:1]:
            if dtype_of(tensor) not in target.computed:
                target.computed.append(dtype_of(tensor))

    def _cast(self, path: str, source: Any, made: Any) -> None:
        before, after = dtype_of(source), dtype_of(made)
        if before in LOW and after == "float32":
            self._widened[id(made)] = (ref(made), before)
        low = _known(self._widened, source)
        if low and after == low:
            elements = self.round_trips.get(path, ("", 0))[1] + made.numel()
            self.round_trips[path] = (low, elements)

    def _enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        begin = time.perf_counter()
        target = self.targets[module]
        self.ran[target.path] = target
        self.stack.append(target.path)
        for value in filter(is_float, tree_leaves((args, kwargs))):
            source, dtype = self._source_of(value), dtype_of(value)
            self.sightings.note_passage(Passage(source, target.path, dtype, dtype, value.numel()))
            if not target.calls:
                target.inputs.append(dtype)
            self._observe(target.path, "input", value)
        now = time.perf_counter()
        self._paused += now - begin
        self._begun.append((now, self._paused))

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        now, target = time.perf_counter(), self.targets[module]
        begin, paused = self._begun.pop()
        target.seconds += now - begin - (self._paused - paused)
        self.stack.pop()
        for value in filter(is_float, tree_leaves(output)):
            if not target.calls:
                target.outputs.append(dtype_of(value))
            self._observe(target.path, "output", value)
            if not self.maker_of(value):
                self._made[id(value)] = (ref(value), target.path)
            if self._ranges and value.requires_grad:
                self._handles.append(value.register_hook(self._gradient_of(target.path)))
        target.calls += 1
        self._paused += time.perf_counter() - now

    def summarized(self, tensor: Any, factor: float = 1.0) -> Summary:
        """The summary of a tensor, of which no operation counts as the model's."""
        self._busy = True
        try:
            return summarize_tensor(tensor, factor)
        finally:
            self._busy = False

    def _gradient_of(self, path: str) -> Any:
        def arrived(gradient: torch.Tensor) -> None:
            summary = self.summarized(gradient, self.factor)
            self.sightings.note_summary(path, "output_gradient", summary)
            self.sightings.look(path, "backward", summary)

        return arrived

    def _observe(self, path: str, kind: str, value: Any) -> None:
        if self._ranges:
            summary = self.summarized(value)
            self.sightings.note_summary(path, kind, summary)
            if kind == "output":
                self.sightings.look(path, "forward", summary)


def _known(made: dict[int, tuple[Any, str]], tensor: Any) -> str:
    """What is known of a tensor; an `id` alone may be that of another one, which is gone."""
    reference, path = made.get(id(tensor), (None, ""))
    return path if reference is not None and reference() is tensor else ""


def nonfinite(tensors: list[Any]) -> str:
    """`"nan"` or `"inf"` if a float tensor holds one; else empty."""
    floats = [t.detach() for t in tensors if is_float(t) and not str(t.dtype).startswith("float8")]
    if any(bool(t.isnan().any()) for t in floats):
        return "nan"
    return "inf" if any(bool(t.isinf().any()) for t in floats) else ""


def _parent(name: str) -> str | None:
    return name.rpartition(".")[0].replace(".", "/") if name else None
