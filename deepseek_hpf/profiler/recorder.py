"""What happens in one recorded step: hooks around every call, taken off whatever happens."""

import copy
import functools
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import keras
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.profiler.sightings import Passage, Sightings, Target, scope_name
from deepseek_hpf.profiler.statistics import Summary
from deepseek_hpf.profiler.summing import dtype_of, is_float, size_of, summarize, tapping

Mode = Literal["watch", "trace", "name"]
Report = Callable[[str, str, list[Any], list[Any]], None]


class Recorder:
    """Watches the calls of targets.

    Args:
        targets: What is watched.
        ranges: Whether values are summarized.
        factor: What gradients are multiplied with, to take the loss scale back.

    Attributes:
        sightings: What was seen.
        mode: `"watch"` looks at tensors; `"trace"` names the scopes of a trace after the targets;
            `"name"` only knows in which target an operation runs.
    """

    def __init__(self, targets: list[Target], *, ranges: bool = True, factor: float = 1.0):
        self.targets = targets
        self.sightings = Sightings()
        self.mode: Mode = "watch"
        self._ranges = ranges
        self._factor = factor
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
    def only(self, mode: Mode) -> Iterator[None]:
        """Hooks that do no more than a mode says within the context."""
        self.mode = mode
        try:
            with self.attached():
                yield
        finally:
            self.mode = "watch"

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Operations within the context belong to `path`."""
        self._stack.append(path)
        try:
            yield
        finally:
            self._stack.pop()

    def heard(self, report: Report) -> Callable[[str, list[Any], list[Any]], None]:
        """What listens to operations and says in which target each ran.

        Args:
            report: Takes the path, the operation's name, its tensors and its results.

        Returns:
            Takes the name, the tensors and the results.
        """

        def seen(name: str, inputs: list[Any], outputs: list[Any]) -> None:
            if not self._busy and self._stack:
                with self._aside():
                    report(self._stack[-1], name, inputs, outputs)

        return seen

    def note_gradient(self, path: str, gradient: Any) -> None:
        """Takes note of the gradient of a layer's output.

        Args:
            path: Path of the layer.
            gradient: The gradient, or the NumPy array that a loop reports.
        """
        with self._aside():
            summary = summarize(keras.ops.convert_to_tensor(gradient), self._factor)
            self.sightings.note_summary(path, "output_gradient", summary)
            self.sightings.look(path, "backward", summary)

    def _attach(self, index: int, target: Target, undo: list[Callable[[], None]]) -> None:
        operation = target.operation
        if target.is_layer:
            policy = operation._dtype_policy
            watched = self._watched_policy(index, policy)
            if watched is not None:
                put_on(operation, "_dtype_policy", watched, undo)
        call = operation.call

        @functools.wraps(call)
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            return self._around(index, call, args, kwargs)

        put_on(operation, "call", watched_call, undo)

    def _watched_policy(self, index: int, policy: Any) -> Any:
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            return None
        watched = copy.copy(policy)
        convert = policy.convert_input

        def convert_input(value: Any, autocast: bool, dtype: Any) -> Any:
            if self.mode != "watch":
                with self._named(index):
                    return convert(value, autocast, dtype)
            result = convert(value, autocast, dtype)
            if result is not value and is_float(result):
                self._converted[id(result)] = (result, value)
            return result

        watched.convert_input = convert_input
        return watched

    def _around(self, index: int, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        target = self.targets[index]
        if self.mode != "watch":
            with self._named(index):
                return call(*args, **kwargs)
        self._enter(target, args, kwargs)
        with self.inside(target.path):
            begin, paused = time.perf_counter(), self._paused
            result = call(*args, **kwargs)
            seconds = time.perf_counter() - begin - (self._paused - paused)
        target.seconds += seconds
        target.calls += 1
        return self._leave(target, result)

    @contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """What runs in the context belongs to a target, and is not looked at."""
        scope = tapping().scope(scope_name(index)) if self.mode == "trace" else nullcontext()
        with scope, self.inside(self.targets[index].path):
            yield

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
                self.sightings.note_passage(passage)
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
        self.sightings.note_summary(path, kind, summary)
        if kind == "output":
            self.sightings.look(path, "forward", summary)

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


def put_on(target: Any, name: str, value: Any, undo: list[Callable[[], None]]) -> None:
    """Puts a value on an instance, past the tracking of Keras, and says how to take it off."""
    held = vars(target)
    if name in held:
        before = held[name]
        undo.append(lambda: held.__setitem__(name, before))
    else:
        undo.append(lambda: held.pop(name, None))
    held[name] = value
