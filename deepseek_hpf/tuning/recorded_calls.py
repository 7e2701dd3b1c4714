"""The calls of a model's layers in one forward pass: what they were given, and from which layer."""

import functools
import importlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.adapters.walk import WalkedLayer, children, walk

Call = tuple[tuple[Any, ...], dict[str, Any]]


class OutOfTimeError(RuntimeError):
    """The time for something that can be left out is over."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A call of a layer, to be repeated.

    Args:
        path: Path of the layer.
        layer: The layer.
        call: `(args, kwargs)`, with tensors in them.
        outputs: Shapes of the float tensors of the result.
        elements: Numbers in inputs, results and weights.
    """

    path: str
    layer: keras.Layer
    call: Call
    outputs: tuple[tuple[int, ...], ...]
    elements: int

    def step(self, dtype: str, *, jit_compile: bool) -> Callable[[], Any]:
        """The forward and backward pass of the layer as it is now.

        Args:
            dtype: Name of the dtype that its float inputs come in.
            jit_compile: Whether XLA compiles it.

        Returns:
            What runs it and returns results and gradients.
        """
        cast = keras.tree.map_structure(lambda x: _cast(x, dtype), self.call)
        # Ones would have no gradient in normalizations, where a constant is without effect.
        rng = np.random.default_rng(0)
        upstream = [
            keras.ops.convert_to_tensor(rng.standard_normal(shape, "float32"), dtype)
            for shape in self.outputs
        ]
        step: Callable[[], Any] = _module().layer_step(
            self.layer, cast, upstream, jit_compile=jit_compile
        )
        return step


@dataclass
class Recording:
    """What happened in one forward pass.

    Args:
        samples: For each kind of call the first one. Calls of one kind are of layers of one class
            and configuration, with inputs of the same shapes.
        kinds: Path of a layer to the kind of each of its calls.
        edges: `(producer, consumer, elements)` of each float tensor that one layer made and another
            took. Where another operation made it, the layer called before counts as its producer.
    """

    samples: dict[str, Sample] = field(default_factory=dict)
    kinds: dict[str, list[str]] = field(default_factory=dict)
    edges: list[tuple[str, str, int]] = field(default_factory=list)


def record(model: keras.Model, x: Any, deadline: float = math.inf) -> Recording:
    """Runs a model forward once, as in training, and takes down the calls of its layers.

    Args:
        model: A built model. Layers write their state.
        x: Its inputs.
        deadline: Value of `time.monotonic()` after which it gives up.

    Returns:
        The calls.

    Raises:
        OutOfTimeError: The deadline has come.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.tuning.recorded_calls import record
        >>> dense = [keras.layers.Dense(4, name=name) for name in "abc"]
        >>> model = keras.Sequential([keras.Input((4,)), *dense])
        >>> recording = record(model, keras.ops.ones((2, 4)))
        >>> recording.edges
        [('a', 'b', 8), ('b', 'c', 8)]
        >>> len(recording.samples)
        1
    """
    recorder = _Recorder(x, deadline)
    log = UndoLog()
    try:
        for walked in units(model):
            log.set_on_instance(walked.layer, "call", recorder.around(walked))
        values = _module().run_recorded(model, x, recorder.taken)
    finally:
        log.undo()
    return recorder.finished(values)


def units(model: keras.Model) -> Iterator[WalkedLayer]:
    """The layers whose precision is decided as one: all that a layer of Keras holds goes with it.

    Args:
        model: The model.

    Yields:
        Layers; none holds another.
    """
    within: set[str] = set()
    for walked in walk(model):
        if walked.parent in within:
            within.add(walked.path)
        elif not children(walked.layer) or _is_whole(walked.layer):
            within.add(walked.path)
            yield walked


def _is_whole(layer: keras.Layer) -> bool:
    if isinstance(layer, keras.Model):
        return False
    whole = (keras.layers.RNN, keras.layers.Wrapper, keras.layers.MultiHeadAttention)
    return isinstance(layer, whole) or type(layer).__module__.startswith("keras.")


class _Recorder:
    def __init__(self, x: Any, deadline: float):
        self._recording = Recording()
        self._deadline = deadline
        self._made: dict[int, str | None] = {id(value): None for value in keras.tree.flatten(x)}
        self._alive: list[Any] = []  # what is gone may have its id taken by another
        self._last: str | None = None
        self._calls: dict[str, Call] = {}

    def around(self, walked: WalkedLayer) -> Callable[..., Any]:
        call = walked.layer.call

        @functools.wraps(call)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if time.monotonic() > self._deadline:
                raise OutOfTimeError("recording the calls of the layers takes too long")
            result = call(*args, **kwargs)
            self._note(walked, (args, kwargs), result)
            return result

        return recorded

    def taken(self) -> list[Any]:
        """The tensors among the arguments of the samples."""
        flat = [value for call in self._calls.values() for value in keras.tree.flatten(call)]
        # Without the graph that led to them.
        return [keras.ops.stop_gradient(value) for value in flat if is_tensor(value)]

    def finished(self, values: list[Any]) -> Recording:
        remaining = iter(values)
        samples = self._recording.samples
        for kind, call in self._calls.items():
            found = keras.tree.map_structure(lambda x: next(remaining) if is_tensor(x) else x, call)
            one = samples[kind]
            samples[kind] = Sample(one.path, one.layer, found, one.outputs, one.elements)
        return self._recording

    def _note(self, walked: WalkedLayer, call: Call, result: Any) -> None:
        given = [value for value in keras.tree.flatten(call) if is_tensor(value)]
        made = [value for value in keras.tree.flatten(result) if is_tensor(value)]
        for value in filter(is_float, given):
            producer = self._made.get(id(value), self._last)
            if producer is not None and producer != walked.path:
                self._recording.edges.append((producer, walked.path, _size(value)))
        kind = _kind(walked.layer, call)
        if kind not in self._calls:
            self._calls[kind] = call
            elements = sum(map(_size, [*given, *made, *walked.layer.weights]))
            outputs = tuple(tuple(value.shape) for value in made if is_float(value))
            self._recording.samples[kind] = Sample(
                walked.path, walked.layer, call, outputs, elements
            )
        self._recording.kinds.setdefault(walked.path, []).append(kind)
        self._made.update((id(value), walked.path) for value in made)
        self._alive += [*given, *made]
        self._last = walked.path


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of the back end, or traced.

    Args:
        value: Anything.

    Returns:
        True or False.
    """
    return bool(keras.ops.is_tensor(value))


def is_float(value: Any) -> bool:
    """Whether a tensor is one of floats.

    Args:
        value: A tensor.

    Returns:
        True or False.
    """
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype)))


def _kind(layer: keras.Layer, call: Call) -> str:
    try:
        config = {k: v for k, v in layer.get_config().items() if k not in ("name", "dtype")}
    except Exception:  # noqa: BLE001 - a layer that cannot be described is one of its kind
        config = {"own": id(layer)}
    given = keras.tree.map_structure(
        lambda x: f"{x.dtype} {tuple(x.shape)}" if is_tensor(x) else x, call
    )
    weights = [tuple(weight.shape) for weight in layer.weights]
    return repr((type(layer), config, given, weights))


def _cast(value: Any, dtype: str) -> Any:
    return keras.ops.cast(value, dtype) if is_tensor(value) and is_float(value) else value


def _size(value: Any) -> int:
    return math.prod(int(size) for size in value.shape)


def _module() -> Any:
    return importlib.import_module(f"deepseek_hpf.tuning.layer_step_{keras.backend.backend()}")
