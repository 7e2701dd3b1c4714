"""What happens in one recorded step: hooks around every call, taken off whatever happens."""

import copy
import functools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.profiler.sightings import Passage, SeenOperation, Target
from deepseek_hpf.profiler.statistics import Summary
from deepseek_hpf.profiler.summing import dtype_of, is_float, size_of, summarize, tapping


class Recorder:
    """Watches the calls of targets.

    Args:
        targets: What is watched.
        ranges: Whether values are summarized.
        factor: What gradients are multiplied with, to take the loss scale back.
    """

    def __init__(self, targets: list[Target], *, ranges: bool = True, factor: float = 1.0):
        self.targets = targets
        self.passages: dict[Passage, int] = {}
        self.operations: dict[SeenOperation, int] = {}
        self.summaries: dict[tuple[str, str, str], Summary] = {}
        self.first_nonfinite: tuple[str, str, str] | None = None
        self.step = 0
        self.nonfinite_step = 0
        self.weight_gradient_was_first = False
        self.nonfinite_history: list[tuple[str, Summary]] = []
        self.tracing = False
        self._ranges = ranges
        self._factor = factor
        self._recent: list[tuple[str, Summary]] = []
        self._made: dict[int, tuple[Any, str, Summary | None]] = {}
        self._converted: dict[int, tuple[Any, Any]] = {}
        self._stack: list[str] = []
        self._paused = 0.0
        self._busy = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every target within the context, none after it."""
        undo: list[Callable[[], None]] = []
        try:
            for index, target in enumerate(self.targets):
                self._attach(index, target, undo)
            yield
        finally:
            while undo:
                undo.pop()()
            self._made.clear()
            self._converted.clear()

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Operations within the context belong to `path`."""
        self._stack.append(path)
        try:
            yield
        finally:
            self._stack.pop()

    def seen(self, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes note of an operation that ran.

        Args:
            name: Its name in the framework.
            inputs: Its tensors.
            outputs: Its results.
        """
        if not self._busy and self._stack:
            self.note_operation(self._stack[-1], name, inputs, outputs)

    def note_operation(self, path: str, name: str, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes note of an operation of a layer.

        Args:
            path: Path of the layer.
            name: Its name in the framework.
            inputs: Its tensors.
            outputs: Its results.
        """
        given = [x for x in inputs if is_float(x)]
        made = [x for x in outputs if is_float(x)]
        if not given or not made:
            return
        reduced = size_of(given[0]) // max(1, size_of(made[0]))
        if "cum" in name.lower():
            reduced = max([int(d or 0) for d in given[0].shape], default=1)
        operation = SeenOperation(
            path, name, tuple(map(dtype_of, given)), tuple(map(dtype_of, made)), reduced
        )
        self.operations[operation] = self.operations.get(operation, 0) + 1

    def note_summary(self, path: str, kind: str, summary: Summary, name: str = "") -> None:
        """Adds a summary to the range of a layer's tensors of one kind.

        Args:
            path: Path of the layer.
            kind: As in `RangeRow`.
            summary: The summary.
            name: Name of the weight.
        """
        total = self.summaries.setdefault((path, kind, name), Summary(summary.dtype))
        total.merge(summary)

    def note_gradient(self, path: str, gradient: Any) -> None:
        """Takes note of the gradient of a layer's output.

        Args:
            path: Path of the layer.
            gradient: The gradient, or the NumPy array that a loop reports.
        """
        with self._aside():
            summary = summarize(keras.ops.convert_to_tensor(gradient), self._factor)
            self.note_summary(path, "output_gradient", summary)
            self.look(path, "backward", summary)

    def _attach(self, index: int, target: Target, undo: list[Callable[[], None]]) -> None:
        operation = target.operation
        if target.is_layer:
            policy = operation._dtype_policy
            watched = self._watched_policy(policy)
            if watched is not None:
                _replace(operation, "_dtype_policy", watched, undo)
        call = operation.call

        @functools.wraps(call)
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            return self._around(index, call, args, kwargs)

        _replace(operation, "call", watched_call, undo)

    def _watched_policy(self, policy: Any) -> Any:
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            return None
        watched = copy.copy(policy)
        convert = policy.convert_input

        def convert_input(value: Any, autocast: bool, dtype: Any) -> Any:
            result = convert(value, autocast, dtype)
            if result is not value and is_float(result):
                self._converted[id(result)] = (result, value)
            return result

        watched.convert_input = convert_input
        return watched

    def _around(self, index: int, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        target = self.targets[index]
        if self.tracing:
            with tapping().scope(f"hpf_{index}_"):
                return call(*args, **kwargs)
        self._enter(target, args, kwargs)
        with self.inside(target.path):
            begin, paused = time.perf_counter(), self._paused
            result = call(*args, **kwargs)
            seconds = time.perf_counter() - begin - (self._paused - paused)
        target.seconds += seconds
        target.calls += 1
        return self._leave(target, result)

    def _enter(self, target: Target, args: Any, kwargs: Any) -> None:
        with self._aside():
            values = [x for x in keras.tree.flatten((args, kwargs)) if is_float(x)]
            first = target.calls == 0
            for value in values:
                given = self._given(value)
                source, summary = self._maker(given)
                passage = Passage(
                    source, target.path, dtype_of(given), dtype_of(value), size_of(value)
                )
                self.passages[passage] = self.passages.get(passage, 0) + 1
                if first:
                    target.inputs.append(dtype_of(given))
                    target.computed.append(dtype_of(value))
                target.elements += size_of(value)
                if self._ranges:
                    self._observe(given, summary, target.path, "input")
            self._converted.clear()

    def _given(self, value: Any) -> Any:
        result, given = self._converted.get(id(value), (None, None))
        return given if result is value else value

    def maker_of(self, tensor: Any) -> str:
        """Path of what made a tensor; empty where that was not watched.

        Args:
            tensor: A tensor of this step.

        Returns:
            The path.
        """
        return self._maker(tensor)[0]

    def _maker(self, tensor: Any) -> tuple[str, Summary | None]:
        reference, path, summary = self._made.get(id(tensor), (None, "", None))
        return (path, summary) if reference is not None and reference() is tensor else ("", None)

    def _observe(self, tensor: Any, summary: Summary | None, path: str, kind: str) -> None:
        if not is_float(tensor):
            return
        taps = tapping()
        if summary is None and not hasattr(tensor, "__array_interface__"):
            if taps.is_concrete(tensor):
                summary = summarize(tensor)
            elif hasattr(taps, "observe"):
                taps.observe(tensor, functools.partial(self._arrived, path, kind))
        elif summary is None:
            summary = summarize(keras.ops.convert_to_tensor(tensor))
        if summary is not None:
            self._take(path, kind, summary)

    def _arrived(self, path: str, kind: str, values: Any) -> None:
        with self._aside():
            self._take(path, kind, summarize(keras.ops.convert_to_tensor(values)))

    def _take(self, path: str, kind: str, summary: Summary) -> None:
        self.note_summary(path, kind, summary)
        if kind == "output":
            self.look(path, "forward", summary)

    def _leave(self, target: Target, result: Any) -> Any:
        first = target.calls == 1

        def leaf(value: Any) -> Any:
            if not is_float(value):
                return value
            if first:
                target.outputs.append(dtype_of(value))
            target.output_elements += size_of(value)
            return self._tapped(target.path, value)

        with self._aside():
            return keras.tree.map_structure(leaf, result)

    def _tapped(self, path: str, value: Any) -> Any:
        _, summary = self._maker(value)
        if not self._ranges:
            self._remember(value, path, None)
            return value
        taps = tapping()
        if summary is None and taps.is_concrete(value):
            summary = summarize(value)
        self._observe(value, summary, path, "output")
        mask = backend.get_keras_mask(value)
        tapped = taps.with_gradient(value, functools.partial(self.note_gradient, path))
        if mask is not None:
            backend.set_keras_mask(tapped, mask)
        self._remember(tapped, path, summary)
        return tapped

    def _remember(self, tensor: Any, path: str, summary: Summary | None) -> None:
        try:
            reference: Any = weakref.ref(tensor)
        except TypeError:
            reference = functools.partial(_itself, tensor)
        self._made[id(tensor)] = (reference, path, summary)

    def look(self, path: str, phase: str, summary: Summary) -> None:
        """Remembers a tensor's range in case that what comes next is not finite.

        Args:
            path: Path of the layer.
            phase: `"forward"`, `"loss"`, `"backward"` or `"weight_gradient"`.
            summary: Its range.
        """
        self._recent.append((path, summary))
        del self._recent[:-21]
        if summary.nonfinite is not None and self.first_nonfinite is None:
            self.weight_gradient_was_first = phase == "weight_gradient"
            phase = "backward" if self.weight_gradient_was_first else phase
            self.first_nonfinite = (phase, path, summary.nonfinite)
            self.nonfinite_history = list(self._recent)
            self.nonfinite_step = self.step

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What runs in the context is ours: not timed, not counted."""
        begin, outer, self._busy = time.perf_counter(), self._busy, True
        try:
            yield
        finally:
            self._busy = outer
            if not outer:
                self._paused += time.perf_counter() - begin


def _itself(tensor: Any) -> Any:
    return tensor


def _replace(target: Any, name: str, value: Any, undo: list[Callable[[], None]]) -> None:
    """Puts a value on an instance, past the tracking of Keras, and says how to take it off."""
    held = vars(target)
    if name in held:
        before = held[name]
        undo.append(lambda: held.__setitem__(name, before))
    else:
        undo.append(lambda: held.pop(name, None))
    held[name] = value
