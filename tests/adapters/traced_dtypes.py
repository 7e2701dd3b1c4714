"""What a model really computes in, read off the traced step of each back end."""

import keras


def exponentials(model, *inputs, training=True):
    """Dtypes of the softmax and exponential operations of a forward pass, from the trace.

    A fused attention of PyTorch's is listed as "fused".
    """
    return _TRACES[keras.backend.backend()](model, inputs, training)


def _tensorflow(model, inputs, training):
    import tensorflow as tf

    traced = tf.function(lambda *x: model(*x, training=training)).get_concrete_function(
        *(tf.convert_to_tensor(x) for x in inputs)
    )
    operations = [
        *traced.graph.get_operations(),
        *(n for f in traced.graph._functions.values() for n in f.graph.get_operations()),
    ]
    return {op.outputs[0].dtype.name for op in operations if op.type in ("Softmax", "Exp")}


def _jax(model, inputs, training):
    import jax

    state = [
        [v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables)
    ]
    traced = jax.make_jaxpr(lambda *x: model.stateless_call(*state, *x, training=training))(*inputs)
    return {
        str(e.outvars[0].aval.dtype) for e in _equations(traced.jaxpr) if e.primitive.name == "exp"
    }


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, list | tuple) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _torch(model, inputs, training):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found = set()

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            if name in ("_softmax", "_log_softmax", "exp", "exp_"):
                found.add(str(out.dtype).removeprefix("torch."))
            elif "scaled_dot_product" in name:
                found.add("fused")
            return out

    with Spy(), torch.no_grad():
        model(*(keras.ops.convert_to_tensor(x) for x in inputs), training=training)
    return found


_TRACES = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
