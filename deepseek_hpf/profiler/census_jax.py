"""JAX: the operations of the training step's jaxpr, and times of the kernels XLA makes of them."""

import glob
import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import keras

from deepseek_hpf.profiler.census_flops import (
    convolution_flops,
    elementwise_flops,
    product_flops,
)
from deepseek_hpf.profiler.census_operations import Array, TracedOperation
from deepseek_hpf.profiler.kernel_times import kernels_of, with_times
from deepseek_hpf.profiler.wording import in_seconds

ORIGIN = (
    "JAX's jaxpr of the training step, before XLA fuses it; times from JAX's profiler, of the "
    "compiled step: a fused kernel's time stands at the operation in it with the most arithmetic, "
    "so what is fused into another costs no time of its own."
)
_MOVES = frozenset(
    """
    convert_element_type reshape transpose broadcast_in_dim slice dynamic_slice squeeze
    dynamic_update_slice concatenate pad gather copy copy_p rev iota stop_gradient expand_dims
    bitcast_convert_type split optimization_barrier device_put select_n
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)
_PLUMBING = frozenset(
    {"reshape", "squeeze", "stop_gradient", "expand_dims", "copy_p", "device_put"}
)


Traced = tuple[list[TracedOperation], list[str]]


def trace_step(model: keras.Model, batch: Any, measure: bool) -> Traced:
    """Traces one training step, and compiles and runs it for the times if asked.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: Arrays.
        measure: Whether to run it; it changes nothing, as its state goes in and comes out.

    Returns:
        The operations of the jaxpr, those of inner ones included, and notes.
    """
    model._symbolic_build(data_batch=batch)
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    # A function object of its own: `jax` would hand out an earlier trace of a bound method.
    traced = jax.jit(lambda state, data: model.train_step(state, data)).trace(state, batch)
    operations = list(_operations(traced.jaxpr.jaxpr, 1, ""))
    if not measure:
        return operations, []
    compiled = traced.lower().compile()
    seconds = _measured(compiled, state, batch)
    operations, lost = with_times(operations, kernels_of(compiled.as_text(), seconds))
    return operations, _notes(model, seconds, lost)


def _notes(model: keras.Model, seconds: dict[str, float], lost: float) -> list[str]:
    if not seconds:
        return ["No times: JAX's profiler is in use by somebody else, or saw nothing."]
    notes = []
    if lost > 0.01 * sum(seconds.values()):
        notes.append(f"{in_seconds(lost)} more are of copies and loop counters of XLA's own.")
    if not model.jit_compile:
        notes.append("The model trains without jax.jit; the times are of its step compiled.")
    return notes


def _measured(compiled: Any, *arguments: Any) -> dict[str, float]:
    """Seconds by instruction of the second of two runs; {} where there is no profile."""
    jax.block_until_ready(compiled(*arguments))
    with tempfile.TemporaryDirectory() as folder:
        try:
            jax.profiler.start_trace(folder)
        except RuntimeError:  # the user's own profile is being taken
            return {}
        try:
            jax.block_until_ready(compiled(*arguments))
        finally:
            jax.profiler.stop_trace()
        return _times_in(folder)


def _times_in(folder: str) -> dict[str, float]:
    """On a device each instruction is on the device's plane, else on the host's threads."""
    seconds: dict[bool, dict[str, float]] = {True: defaultdict(float), False: defaultdict(float)}
    for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            on_device = plane.name.startswith("/device:")
            for line in plane.lines:
                for event in line.events:
                    instruction = dict(event.stats).get("hlo_op")
                    if instruction:
                        seconds[on_device][instruction] += event.duration_ns * 1e-9
    return dict(seconds[True] or seconds[False])


def _operations(jaxpr: Any, times: int, place: str) -> Iterator[TracedOperation]:
    for equation in jaxpr.eqns:
        here = "/".join(filter(None, (place, str(equation.source_info.name_stack))))
        inner = list(_inner(equation))
        for body, repeats in inner:
            yield from _operations(body, times * repeats, here)
        if not inner and equation.primitive.name not in _PLUMBING:
            yield _described(equation, times, here)


def _inner(equation: Any) -> Iterator[tuple[Any, int]]:
    """The jaxprs that an equation runs, and how often."""
    parameters = equation.params
    name = equation.primitive.name
    if name == "cond":  # one branch runs: the longest is counted
        yield max((_open(each) for each in parameters["branches"]), key=lambda j: len(j.eqns)), 1
    elif name == "while":
        yield _open(parameters["body_jaxpr"]), 1
    elif name == "scan":
        yield _open(parameters["jaxpr"]), parameters["length"]
    elif not name.startswith(("reduce", "argm", "scatter", "cum", "select_and")):
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
            if key in parameters and hasattr(_open(parameters[key]), "eqns"):
                yield _open(parameters[key]), 1
                return


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _described(equation: Any, times: int, place: str) -> TracedOperation:
    inputs = tuple(_array(value.aval) for value in equation.invars)
    outputs = tuple(_array(value.aval) for value in equation.outvars)
    name = equation.primitive.name
    cast = name == "convert_element_type" and inputs[0].dtype != outputs[0].dtype
    return TracedOperation(
        name,
        place,
        inputs,
        outputs,
        flops=_flops(equation, inputs, outputs),
        is_cast=cast,
        times=times,
    )


def _array(value: Any) -> Array:
    return Array(str(getattr(value, "dtype", "token")), tuple(getattr(value, "shape", ())))


def _flops(equation: Any, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> float:
    name = equation.primitive.name
    if name in _MOVES:
        return 0.0
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return product_flops(
            outputs[0].shape, math.prod(inputs[0].shape[axis] for axis in contracted)
        )
    if name == "conv_general_dilated":
        return _convolution(equation, inputs, outputs)
    return elementwise_flops(inputs, outputs)


def _convolution(equation: Any, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> float:
    """A gradient is a convolution too; the zeros that dilation puts in are no arithmetic.

    With a dilated input (the gradient by the input, stride s) one in s outputs of a window meets a
    number: the FLOPs are those of the window that slides over the undilated input.
    """
    kernel = inputs[1].shape
    channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    whole = convolution_flops(outputs[0].elements, kernel, channels)
    return whole / math.prod(equation.params["lhs_dilation"])
