"""LSTM layers with one product over the whole sequence where Keras makes one a step.

Keras's loop casts both weights anew at every step and adds up their gradients step by step. Here
the input is projected once; the loop holds only what depends on the step before it; the
gradients of the weights are one product each, over all steps. The cell state stays in float32.
"""

import functools
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.adapters.call_hooks import Call
from deepseek_hpf.adapters.kernels.refusals_tensorflow import on_cpu_only

Tensors = tuple[tf.Tensor, ...]


def refuses(layer: keras.Layer) -> str | None:
    """Why a layer keeps its own loop.

    Args:
        layer: An `LSTM`.

    Returns:
        The reason, or None.
    """
    if layer.activation is not keras.activations.tanh:
        return "its activation is not tanh"
    if layer.recurrent_activation is not keras.activations.sigmoid:
        return "its recurrent activation is not sigmoid"
    if layer.dropout or layer.recurrent_dropout:
        return "it has dropout"
    if layer.unroll:
        return "it is unrolled"
    if layer.cell.compute_dtype not in ("bfloat16", "float32"):
        return f"the layer computes in {layer.cell.compute_dtype}"
    return on_cpu_only(layer)


def wrap(layer: keras.Layer, call: Call) -> Call:
    """The layer with its loop over steps exchanged; states, masks and casts are its own.

    Args:
        layer: An `LSTM` that is not refused.
        call: Its present `call`.

    Returns:
        The wrapper. A call with a mask runs Keras's loop.
    """
    own_loop = type(layer).inner_loop

    def loop(sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        if mask is not None or sequences.shape[1] == 0:
            return own_loop(layer, sequences, initial_state, mask, training)
        return _loop_of(layer, sequences, initial_state)

    @functools.wraps(call)
    def lstm_call(*args: Any, **kwargs: Any) -> Any:
        layer.inner_loop = loop
        try:
            return call(*args, **kwargs)
        finally:
            del layer.inner_loop

    return lstm_call


def _loop_of(layer: keras.Layer, sequences: Any, initial_state: Any) -> Any:
    cell = layer.cell
    dtype = cell.compute_dtype
    x = tf.cast(tf.convert_to_tensor(sequences), dtype)
    if layer.go_backwards:
        x = tf.reverse(x, [1])
    weights = [
        tf.cast(tf.convert_to_tensor(variable), dtype)
        for variable in (cell.kernel, cell.recurrent_kernel)
    ]
    bias = tf.cast(tf.convert_to_tensor(cell.bias), dtype) if cell.use_bias else None
    hidden, carry = initial_state
    outputs, carry = lstm(x, hidden, carry, weights[0], weights[1], bias)
    last = outputs[-1]
    if layer.return_sequences:
        return last, tf.transpose(outputs, [1, 0, 2]), [last, carry]
    return last, last[:, tf.newaxis], [last, carry]


def lstm(
    x: tf.Tensor,
    hidden: tf.Tensor,
    carry: tf.Tensor,
    kernel: tf.Tensor,
    recurrent: tf.Tensor,
    bias: tf.Tensor | None,
) -> Tensors:
    """An LSTM over a whole sequence.

    Args:
        x: Shape (batch, steps, features), bfloat16 or float32; so are all others.
        hidden: State before the first step, shape (batch, units).
        carry: Cell state before the first step, shape (batch, units).
        kernel: Shape (features, 4 * units); gates in Keras's order: input, forget, cell, output.
        recurrent: Shape (units, 4 * units).
        bias: Shape (4 * units,), or None.

    Returns:
        Outputs of all steps, shape (steps, batch, units), and the last cell state.
    """
    if bias is None:
        bias = tf.zeros([recurrent.shape[1]], x.dtype)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> Any:
        gates, carries, outputs = _forward(*inputs)
        last = tf.cast(carries[-1], x.dtype)

        def gradient(of_outputs: tf.Tensor, of_carry: tf.Tensor) -> Tensors:
            return _backward(inputs, (gates, carries, outputs), of_outputs, of_carry)

        return (outputs, last), gradient

    result: Tensors = run(x, hidden, carry, kernel, recurrent, bias)
    return result


def _forward(
    x: tf.Tensor,
    hidden: tf.Tensor,
    carry: tf.Tensor,
    kernel: tf.Tensor,
    recurrent: tf.Tensor,
    bias: tf.Tensor,
) -> Tensors:
    batch, steps = tf.shape(x)[0], tf.shape(x)[1]
    width = recurrent.shape[1]
    projected = tf.reshape(tf.matmul(_by_step(x), kernel) + bias, [steps, batch, width])

    def step(t: Any, hidden: Any, carry: Any, *arrays: Any) -> Any:
        total = tf.cast(projected[t] + tf.matmul(hidden, recurrent), tf.float32)
        into, forget, cell, out = tf.split(total, 4, -1)
        into, forget, out = tf.sigmoid(into), tf.sigmoid(forget), tf.sigmoid(out)
        cell = tf.tanh(cell)
        carry = forget * carry + into * cell
        hidden = tf.cast(out * tf.tanh(carry), hidden.dtype)
        made = tf.concat([into, forget, cell, out], -1), carry, hidden
        return t + 1, hidden, carry, *(a.write(t, m) for a, m in zip(arrays, made, strict=True))

    kept = [tf.TensorArray(dtype, size=steps) for dtype in (tf.float32, tf.float32, x.dtype)]
    start = (0, hidden, tf.cast(carry, tf.float32), *kept)
    arrays = tf.while_loop(lambda t, *_: t < steps, step, start)[3:]
    gates, carries, outputs = (array.stack() for array in arrays)
    units = recurrent.shape[0]
    return (
        tf.ensure_shape(gates, [x.shape[1], x.shape[0], width]),
        tf.ensure_shape(carries, [x.shape[1], x.shape[0], units]),
        tf.ensure_shape(outputs, [x.shape[1], x.shape[0], units]),
    )


def _backward(
    inputs: Tensors, kept: Tensors, of_outputs: tf.Tensor, of_carry: tf.Tensor
) -> Tensors:
    x, hidden, carry, kernel, recurrent, bias = inputs
    outputs = kept[2]
    totals, dhidden, dcarry = _backward_loop(inputs, kept, of_outputs, of_carry)
    before = tf.concat([hidden[tf.newaxis], outputs[:-1]], 0)
    steps, batch = tf.shape(outputs)[0], tf.shape(outputs)[1]
    dx = tf.reshape(tf.matmul(totals, kernel, transpose_b=True), [steps, batch, x.shape[-1]])
    return (
        tf.transpose(dx, [1, 0, 2]),
        dhidden,
        tf.cast(dcarry, carry.dtype),
        tf.matmul(_by_step(x), totals, transpose_a=True),
        tf.matmul(tf.reshape(before, [-1, recurrent.shape[0]]), totals, transpose_a=True),
        tf.cast(tf.reduce_sum(tf.cast(totals, tf.float32), 0), bias.dtype),
    )


def _backward_loop(
    inputs: Tensors, kept: Tensors, of_outputs: tf.Tensor, of_carry: tf.Tensor
) -> Tensors:
    """Gradients of the gates' inputs, shape (steps * batch, 4 * units), and of both states."""
    hidden, carry, recurrent = inputs[1], inputs[2], inputs[4]
    by_gates, by_hidden, by_carry, forget = _factors(carry, kept)
    across = tf.transpose(recurrent)
    steps = tf.shape(of_outputs)[0]

    def step(t: Any, dhidden: Any, dcarry: Any, array: Any) -> Any:
        into_hidden = tf.cast(dhidden, tf.float32) + tf.cast(of_outputs[t], tf.float32)
        dcarry += into_hidden * by_carry[t]
        parts = tf.tile(dcarry, [1, 3]) * by_gates[t], into_hidden * by_hidden[t]
        total = tf.cast(tf.concat(parts, -1), recurrent.dtype)
        return t - 1, tf.matmul(total, across), dcarry * forget[t], array.write(t, total)

    start = (
        steps - 1,
        tf.zeros_like(hidden),
        tf.cast(of_carry, tf.float32),
        tf.TensorArray(recurrent.dtype, size=steps),
    )
    _, dhidden, dcarry, array = tf.while_loop(lambda t, *_: t >= 0, step, start)
    return tf.reshape(array.stack(), [-1, recurrent.shape[1]]), dhidden, dcarry


def _factors(carry: tf.Tensor, kept: Tensors) -> Tensors:
    """All that the gradient multiplies by and that needs no step before it, for all steps."""
    gates, carries, _ = kept
    into, forget, cell, out = tf.split(gates, 4, -1)
    before = tf.concat([tf.cast(carry, tf.float32)[tf.newaxis], carries[:-1]], 0)
    bent = tf.tanh(carries)
    by_gates = tf.concat(
        [
            cell * into * (1 - into),
            before * forget * (1 - forget),
            into * (1 - cell * cell),
        ],
        -1,
    )
    return by_gates, bent * out * (1 - out), out * (1 - bent * bent), forget


def _by_step(x: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, x.shape[-1]])
