"""TensorFlow: the operations of the training step's graph, and their times from its profiler."""

import contextlib
import glob
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from deepseek_hpf.profiler.census_flops import (
    convolution_flops,
    elementwise_flops,
    product_flops,
)
from deepseek_hpf.profiler.census_operations import Array, TracedOperation

ORIGIN = (
    "TensorFlow's graph of the training step, before Grappler; times from TensorFlow's profiler, "
    "of a step run without XLA, all threads added up."
)
_PLUMBING = frozenset(
    """
    Const Placeholder PlaceholderWithDefault Identity IdentityN NoOp ReadVariableOp StopGradient
    Reshape Shape ShapeN Squeeze ExpandDims PartitionedCall StatefulPartitionedCall If
    StatelessIf While StatelessWhile Case StatelessCase VariableShape BroadcastGradientArgs Size
    Rank TensorListReserve TensorListSetItem TensorListGetItem EmptyTensorList PreventGradient
    TensorListFromTensor
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)
_MOVES = frozenset(
    """
    Cast Transpose ConjugateTranspose ConcatV2 Concat Slice StridedSlice StridedSliceGrad Tile
    Pad PadV2 MirrorPad Gather GatherV2 GatherNd Pack Unpack Split SplitV BroadcastTo Fill
    ZerosLike OnesLike AssignVariableOp Bitcast SpaceToBatchND BatchToSpaceND ReverseV2
    TensorListStack ResizeBilinear ScatterNd TensorScatterUpdate UnsortedSegmentSum
    ResourceGather OneHot Range LinSpace
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)


Traced = tuple[list[TracedOperation], list[str]]


def trace_step(model: keras.Model, batch: Any, measure: bool) -> Traced:
    """Traces one training step, and runs it for the times if asked.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: Tensors.
        measure: Whether to run it.

    Returns:
        The operations of the graph that have an effect, those in the bodies of loops and branches
        included, and notes.
    """
    step = tf.function(lambda data: model.train_step(data), autograph=False)
    traced = step.get_concrete_function(batch)
    seconds = _measured(traced, batch) if measure else {}
    found = [_described(*each, seconds) for each in _operations(traced.graph, 1)]
    return found, _notes(model, measure, seconds)


def _notes(model: keras.Model, measure: bool, seconds: dict[str, float]) -> list[str]:
    notes = []
    if measure and not seconds:
        notes.append("No times: TensorFlow's profiler is in use by somebody else, or saw nothing.")
    if model.jit_compile:
        notes.append("The model trains with XLA, which fuses these operations.")
    return notes


def _needed(graph: Any) -> list[Any]:
    """The operations that outputs and effects depend on: TensorFlow does not run the others."""
    waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    found: set[Any] = set()
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [tensor.op for tensor in operation.inputs] + operation.control_inputs
    return [operation for operation in graph.get_operations() if operation in found]


def _operations(graph: Any, times: int) -> Iterator[tuple[Any, int]]:
    for operation in _needed(graph):
        if operation.type not in _PLUMBING:
            yield operation, times
        for name, repeats in _bodies(operation):
            body = function_graph(graph, name)
            if body is not None:
                yield from _operations(body, times * repeats)


def _bodies(operation: Any) -> list[tuple[str, int]]:
    if operation.type in ("While", "StatelessWhile"):
        return [(operation.get_attr("body").name, trip_count(operation))]
    if operation.type in ("If", "StatelessIf"):  # one of the two runs: the one more usual in Keras
        return [(operation.get_attr("then_branch").name, 1)]
    if operation.type in ("PartitionedCall", "StatefulPartitionedCall"):
        return [(operation.get_attr("f").name, 1)]
    return []


def trip_count(operation: Any) -> int:
    """How often a loop runs.

    Args:
        operation: A `While`; `while_v2` passes counter, limit, … in.

    Returns:
        The loop's limit where it is known, else 1.
    """
    limit = _static(operation.inputs[1]) if len(operation.inputs) > 1 else None
    if limit is None or limit.ndim or limit.dtype.kind != "i":
        return 1
    return max(int(limit), 1)


def _static(tensor: Any) -> Any:
    if tensor.op.type in ("Max", "Min"):  # of the lengths, as Keras has it in `rnn`
        values = tf.get_static_value(tensor.op.inputs[0])
        reduce = np.max if tensor.op.type == "Max" else np.min
        return None if values is None else np.asarray(reduce(values))
    value = tf.get_static_value(tensor)
    return None if value is None else np.asarray(value)


def function_graph(graph: Any, name: str) -> Any:
    """The graph of a function.

    Args:
        graph: A graph that calls it.
        name: Its name.

    Returns:
        The graph, or None if it is not known here.
    """
    while graph is not None:
        function = graph._functions.get(name) if hasattr(graph, "_functions") else None
        if function is not None:
            return getattr(function, "graph", None)
        graph = getattr(graph, "outer_graph", None)
    return None


def _described(operation: Any, times: int, seconds: dict[str, float]) -> TracedOperation:
    inputs = tuple(_array(tensor) for tensor in operation.inputs)
    outputs = tuple(_array(tensor) for tensor in operation.outputs)
    cast = operation.type == "Cast" and inputs[0].dtype != outputs[0].dtype
    return TracedOperation(
        operation.type,
        operation.name,
        inputs,
        outputs,
        flops=_flops(operation, inputs, outputs),
        is_cast=cast,
        times=times,
        seconds=seconds.get(operation.name),
    )


def _array(tensor: Any) -> Array:
    shape = tensor.shape
    known = () if shape.rank is None else tuple(1 if size is None else size for size in shape)
    return Array(tensor.dtype.base_dtype.name, known)


def _flops(operation: Any, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> float:
    kind = operation.type
    if kind in _MOVES:
        return 0.0
    if kind in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        flag = "transpose_a" if kind == "MatMul" else "adj_x"
        contracted = inputs[0].shape[-2 if operation.get_attr(flag) else -1]
        return product_flops(outputs[0].shape, contracted)
    if kind == "Einsum":
        return _einsum_flops(operation.get_attr("equation").decode(), inputs)
    if kind.startswith(("Conv", "DepthwiseConv")):
        return _convolution(kind, inputs, outputs)
    return elementwise_flops(inputs, outputs)


def _einsum_flops(equation: str, inputs: tuple[Array, ...]) -> float:
    sizes: dict[str, int] = {}
    for term, array in zip(equation.partition("->")[0].split(","), inputs, strict=True):
        sizes.update(zip(term.replace("...", ""), array.shape[-len(term) :], strict=False))
    return 2.0 * math.prod(sizes.values())


def _convolution(kind: str, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> float:
    if "BackpropFilter" in kind:
        result, kernel = inputs[2], outputs[0]
    elif "BackpropInput" in kind:
        result, kernel = inputs[2], inputs[1]
    else:
        result, kernel = outputs[0], inputs[1]
    # A depthwise kernel is (height, width, channels, multiplier): each output has one window.
    channels = math.prod(kernel.shape[-2:]) if "Depthwise" in kind else kernel.shape[-1]
    return convolution_flops(result.elements, kernel.shape, channels)


def _measured(traced: Any, batch: Any) -> dict[str, float]:
    """Runs the step twice, the second time under the profiler, and puts all values back."""
    with _written_values_restored(traced.graph.variables):
        traced(batch)
        with tempfile.TemporaryDirectory() as folder:
            try:
                tf.profiler.experimental.start(folder)
            except tf.errors.AlreadyExistsError:  # the user's own profile is being taken
                return {}
            try:
                keras.tree.map_structure(_wait, traced(batch))
            finally:
                tf.profiler.experimental.stop()
            return _times_in(folder)


def _wait(value: Any) -> None:
    if hasattr(value, "numpy"):
        value.numpy()


@contextlib.contextmanager
def _written_values_restored(variables: Any) -> Iterator[None]:
    before = [(variable, tf.identity(variable)) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


def _times_in(folder: str) -> dict[str, float]:
    """Seconds by name of operation: events of the host are called `name:Type`."""
    seconds: dict[str, float] = defaultdict(float)
    for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        space = xplane_pb2.XSpace()
        with open(path, "rb") as file:
            space.ParseFromString(file.read())
        for plane in space.planes:
            for line in plane.lines:
                for event in line.events:
                    name, mark, _ = plane.event_metadata[event.metadata_id].name.rpartition(":")
                    if mark and "::" not in name + mark:
                        seconds[name] += event.duration_ps * 1e-12
    return dict(seconds)
