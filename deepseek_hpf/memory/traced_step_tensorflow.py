"""TensorFlow: the graph of the step, and which of its tensors are alive at once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.memory.graph_tensorflow import Buffers, in_running_order, work_of
from deepseek_hpf.memory.liveness import peak_bytes
from deepseek_hpf.memory.traced_step import TracedStep

ORIGIN = (
    "TensorFlow's graph of the step, before Grappler, as a first-come executor would run it, "
    "without what a kernel needs inside"
)
_XLA = "it trains with XLA, which fuses operations; the figures are of the graph without"


def trace(model: keras.Model, batch: Any) -> TracedStep:
    """Traces the step, from shapes and dtypes alone.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The step's figures.
    """
    spec = keras.tree.map_structure(_spec, tuple(batch))
    step = tf.function(lambda data: model.train_step(data), autograph=False)
    with _phases_marked(model.optimizer) as marks:
        graph = step.get_concrete_function(spec).graph
    buffers = Buffers(graph)
    works = [work_of(operation, buffers) for operation in in_running_order(graph)]
    peak = peak_bytes(works, [buffers.of(tensor) for tensor in graph.outputs])
    notes = (_XLA,) if model.jit_compile else ()
    return TracedStep(_kept(graph, buffers, marks), peak, ORIGIN, notes)


def _spec(value: Any) -> Any:
    if value is None:
        return None
    return tf.TensorSpec(value.shape, keras.backend.standardize_dtype(value.dtype))


@contextlib.contextmanager
def _phases_marked(optimizer: Any) -> Iterator[dict[str, int]]:
    """How many operations the graph has when the loss is there, and when the gradients are."""
    marks: dict[str, int] = {}
    log = UndoLog()

    def marking(name: str) -> Callable[..., Any]:
        method = getattr(optimizer, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            marks.setdefault(name, len(tf.compat.v1.get_default_graph().get_operations()))
            return method(*args, **kwargs)

        return marked

    try:
        for name in ("scale_loss", "apply"):
            log.set_on_instance(optimizer, name, marking(name))
        yield marks
    finally:
        log.undo()


def _kept(graph: Any, buffers: Buffers, marks: dict[str, int]) -> int | None:
    """Bytes of what operations of the forward pass make and operations of the backward read."""
    if len(marks) < 2:
        return None
    operations = graph.get_operations()
    forward = operations[: marks["scale_loss"]]
    made = {buffers.of(tensor): tensor for op in forward for tensor in op.outputs}
    read = {
        buffers.of(tensor)
        for op in operations[marks["scale_loss"] : marks["apply"]]
        for tensor in op.inputs
    }
    return sum(buffers.sizes.get(buffer, 0) for buffer in read & made.keys())
