"""A computation of a TensorFlow graph that packs what its gradient needs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.storage.backward_graph_tensorflow import BackwardGraph
from deepseek_hpf.storage.kept_tensors_tensorflow import KeptTensors
from deepseek_hpf.storage.stored_call import Call, Settings

# Of the backward pass and the computation's inputs: what is kept; None to keep all as it is.
Choose = Callable[[BackwardGraph, Sequence[tf.Tensor]], KeptTensors | None]


def packing(settings: Settings, owns_arguments: bool = False) -> Choose:
    """Has packed what can be.

    Args:
        settings: How to pack.
        owns_arguments: As for `KeptTensors`.

    Returns:
        What `differentiated` takes.
    """

    def choose(backward: BackwardGraph, inputs: Sequence[tf.Tensor]) -> KeptTensors | None:
        kept = KeptTensors(backward, inputs, settings, owns_arguments)
        return None if kept.is_whole else kept

    return choose


def differentiated(
    call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], choose: Choose
) -> Any:
    """Calls, and sees to the gradient.

    Args:
        call: What to call, in a graph.
        args: Its arguments.
        kwargs: Its keyword arguments.
        choose: What is kept.

    Returns:
        The result.
    """
    flat = tf.nest.flatten((args, kwargs))
    # Each once: a gradient by a tensor that comes in twice is by both.
    inputs = list({id(x): x for x in flat if isinstance(x, tf.Tensor)}.values())
    if not inputs:
        return call(*args, **kwargs)
    results: list[Any] = []

    @tf.custom_gradient
    def compute(*given: tf.Tensor) -> Any:
        values = dict(zip(map(id, inputs), given, strict=True))
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x for x in given if x.dtype.is_floating])
            mine = [values.get(id(x), x) for x in flat]
            packed_args, packed_kwargs = tf.nest.pack_sequence_as((args, kwargs), mine)
            results.append(call(*packed_args, **packed_kwargs))
        outputs = [y for y in tf.nest.flatten(results[0]) if isinstance(y, tf.Tensor)]

        def gradient(*upstream: tf.Tensor, variables: Any = ()) -> Any:
            sources = [*given, *variables]
            with outputs[0].graph.as_default(), tf.control_dependencies(None):
                backward = BackwardGraph(tape, outputs, sources)
                kept = choose(backward, given)
            if kept is None:
                found = tape.gradient(outputs, sources, list(upstream))
            else:
                found = backward.gradients(upstream, kept.restored(upstream[0]))
            return (found[: len(given)], found[len(given) :]) if variables else found

        return outputs, gradient

    outputs = iter(compute(*inputs))
    made = [_in_place_of(y, outputs) for y in tf.nest.flatten(results[0])]
    return tf.nest.pack_sequence_as(results[0], made)


def _in_place_of(y: Any, outputs: Iterator[tf.Tensor]) -> Any:
    if not isinstance(y, tf.Tensor):
        return y
    output = next(outputs)
    mask = backend.get_keras_mask(y)
    if mask is not None:
        backend.set_keras_mask(output, mask)
    return output
