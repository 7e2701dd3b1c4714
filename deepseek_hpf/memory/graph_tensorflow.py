"""TensorFlow graphs as operations on buffers: what shares one, and in which order they run."""

from collections import deque
from typing import Any

import tensorflow as tf

from deepseek_hpf.memory.liveness import Work, peak_bytes
from deepseek_hpf.profiler.census_tensorflow import function_graph, trip_count

# Their result is their first input, in another shape or under another name.
_ALIASES = frozenset(
    """
    Identity Reshape Squeeze ExpandDims StopGradient PreventGradient ReadVariableOp EnsureShape
    CheckNumerics Bitcast
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)
# Their result takes the place of an input that nobody needs any more.
_IN_PLACE = frozenset(
    """
    Add AddV2 AddN Sub Mul RealDiv DivNoNan Neg Square Sqrt Rsqrt Exp Log Erf Erfc Tanh Sigmoid Relu
    Relu6 Elu Selu Softplus LeakyRelu ReluGrad Relu6Grad SigmoidGrad TanhGrad SqrtGrad RsqrtGrad
    BiasAdd Softmax Maximum Minimum Pow Reciprocal LogSoftmax SquaredDifference Select SelectV2
    """.split()  # noqa: SIM905
)
_LOOPS = ("While", "StatelessWhile")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")


class Buffers:
    """The buffer behind each tensor of a graph, by number, and its bytes.

    Args:
        graph: The graph. What comes from outside, variables and the batch, has no bytes here.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.sizes: dict[int, int] = {}
        self._of: dict[Any, int] = {}
        for operation in graph.get_operations():
            self._add(operation)

    def of(self, tensor: Any) -> int:
        """The buffer of a tensor.

        Args:
            tensor: Of the graph.

        Returns:
            Its number; operations in the order of the graph, so that a result has a higher one.
        """
        return self._of[tensor.ref()]

    def _add(self, operation: Any) -> None:
        for index, tensor in enumerate(operation.outputs):
            source = self._source(operation, index)
            if source is not None:
                self._of[tensor.ref()] = self.of(source)
                continue
            number = len(self._of)
            self._of[tensor.ref()] = number
            if operation.type not in ("Placeholder", "Const", "VarHandleOp"):
                self.sizes[number] = self._bytes(operation, index)

    def _source(self, operation: Any, index: int) -> Any:
        """The tensor that an output is the same as, if there is one."""
        if operation.type in _ALIASES:
            return operation.inputs[0]
        if operation.type == "IdentityN":
            return operation.inputs[index]
        if operation.type in _LOOPS:
            body = function_graph(self.graph, operation.get_attr("body").name)
            result = None if body is None else _without_identities(body.outputs[index])
            if result is not None and result is body.inputs[index]:
                return operation.inputs[index]
        return None

    def _bytes(self, operation: Any, index: int) -> int:
        tensor = operation.outputs[index]
        if tensor.dtype == tf.variant and operation.type in _LOOPS:
            return trip_count(operation) * _item_bytes(self.graph, operation, index)
        if tensor.dtype in (tf.variant, tf.resource, tf.string):
            return 0
        return int(tensor.shape.num_elements() or 0) * int(tensor.dtype.size)


def work_of(operation: Any, buffers: Buffers) -> Work:
    """An operation as reads and writes of buffers.

    Args:
        operation: Of the graph.
        buffers: Of the graph.

    Returns:
        The work; of a loop or a call, what happens inside is its temporary memory.
    """
    reads = tuple(buffers.of(tensor) for tensor in operation.inputs)
    writes = {buffers.of(tensor) for tensor in operation.outputs} - set(reads)
    made = tuple((number, buffers.sizes.get(number, 0)) for number in sorted(writes))
    inside = _inside(operation, buffers.graph)
    return Work(reads, made, inside, takes_over=operation.type in _IN_PLACE)


def in_running_order(graph: Any) -> list[Any]:
    """The operations that results and effects depend on, first come, first served.

    Args:
        graph: The graph.

    Returns:
        Operations, each behind all that it needs.
    """
    needed = _needed(graph)
    waiting = {op: len(set(_before(op))) for op in needed}
    after: dict[Any, list[Any]] = {op: [] for op in needed}
    for operation in needed:
        for before in set(_before(operation)):
            after[before].append(operation)
    ready = deque(op for op in needed if not waiting[op])
    order = []
    while ready:
        operation = ready.popleft()
        order.append(operation)
        for later in after[operation]:
            waiting[later] -= 1
            if not waiting[later]:
                ready.append(later)
    return order


def _before(operation: Any) -> list[Any]:
    return [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)


def _needed(graph: Any) -> list[Any]:
    stack = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    found: set[Any] = set()
    while stack:
        operation = stack.pop()
        if operation not in found:
            found.add(operation)
            stack += _before(operation)
    return [operation for operation in graph.get_operations() if operation in found]


def _inside(operation: Any, graph: Any) -> int:
    """The peak inside of a loop's body or of a function, its results left out."""
    if operation.type in _LOOPS:
        body = function_graph(graph, operation.get_attr("body").name)
    elif operation.type in _CALLS:
        body = function_graph(graph, operation.get_attr("f").name)
    else:
        return 0
    if body is None:
        return 0
    buffers = Buffers(body)
    return peak_bytes([work_of(each, buffers) for each in in_running_order(body)])


def _item_bytes(graph: Any, operation: Any, index: int) -> int:
    """Bytes that one round of a loop adds to a list of tensors."""
    body = function_graph(graph, operation.get_attr("body").name)
    if body is None:
        return 0
    maker = _without_identities(body.outputs[index]).op
    if maker.type not in ("TensorListPushBack", "TensorListSetItem"):
        return 0
    item = maker.inputs[-1]
    if item.dtype in (tf.variant, tf.resource) or _is_constant(body, item):
        return 0
    return int(item.shape.num_elements() or 0) * int(item.dtype.size)


def _is_constant(body: Any, item: Any) -> bool:
    """Whether all rounds add the same tensor, such as a weight: it is there once."""
    while item.op.type in _ALIASES:
        item = item.op.inputs[0]
    if item.dtype == tf.resource or item.op.type == "Const":
        return True
    places = [index for index, given in enumerate(body.inputs) if given is item]
    return any(_without_identities(body.outputs[index]) is item for index in places)


def _without_identities(tensor: Any) -> Any:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tensor
