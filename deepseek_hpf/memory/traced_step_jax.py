"""JAX: XLA plans the memory of a step when it compiles it; the trace tells what is kept."""

from typing import Any

import jax
import keras

from deepseek_hpf.memory.traced_step import TracedStep

ORIGIN = (
    "XLA's plan of the compiled step (`memory_analysis`); what is kept for the backward pass is of "
    "the trace, before XLA fuses it"
)


def trace(model: keras.Model, batch: Any) -> TracedStep:
    """Compiles the step, from shapes and dtypes alone.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The step's figures.
    """
    batch = keras.tree.map_structure(_spec, tuple(batch))
    model._symbolic_build(data_batch=batch)
    state = tuple([_spec(v) for v in group] for group in _state(model))
    kept = _kept(model, state, batch)
    # A function object of its own: `jax` would hand out an earlier trace of a bound method.
    step = jax.jit(lambda state, data: model.train_step(state, data), donate_argnums=0)
    plan = step.lower(state, batch).compile().memory_analysis()
    made = plan.output_size_in_bytes - plan.alias_size_in_bytes
    notes = () if model.jit_compile else ("it trains without jax.jit: the step was compiled here",)
    return TracedStep(kept, int(plan.temp_size_in_bytes + made), ORIGIN, notes)


def _state(model: keras.Model) -> tuple[Any, ...]:
    """The variables in the order of Keras's training state."""
    return (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )


def _spec(value: Any) -> Any:
    if value is None:
        return None
    return jax.ShapeDtypeStruct(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))


def _kept(model: keras.Model, state: Any, batch: Any) -> int | None:
    """Bytes of the residuals of the loss that are none of its arguments."""
    if type(model).train_step is not keras.Model.train_step:
        return None  # a step of the user's own may differentiate anything
    found: dict[int, Any] = {}

    def residuals(state: Any, batch: Any) -> Any:
        trainable, others, optimizer, metrics = state
        x, y, weights = (*batch, None)[:3]

        def loss(values: Any) -> Any:
            return model.compute_loss_and_updates(
                values, others, metrics, x, y, weights, training=True, optimizer_variables=optimizer
            )

        _, backward, _ = jax.vjp(loss, trainable, has_aux=True)
        found.update({id(leaf): leaf for leaf in jax.tree.leaves(backward)})
        for given in jax.tree.leaves((state, batch)):
            found.pop(id(given), None)
        found.update({key: _spec(leaf) for key, leaf in found.items()})
        return 0

    jax.eval_shape(residuals, state, batch)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in found.values())
