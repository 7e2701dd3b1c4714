"""Runs a step under TensorFlow: plain, with the update compiled by XLA, or on several replicas."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.optimizers import compiled_update_tensorflow as compiled
from deepseek_hpf.optimizers.clipping_rule import Decision
from deepseek_hpf.optimizers.finite import Statistics
from deepseek_hpf.optimizers.replacement import replaced
from deepseek_hpf.optimizers.step import Step

# The class between Keras's optimizers and TensorFlow's additions for several replicas.
_Base: Any = next(c for c in keras.Optimizer.__mro__ if c.__name__ == "BaseOptimizer")
_WITHIN_A_REPLICA = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_backend_increment_gradient_accumulators",
    "_overwrite_model_variables_with_average_value",
)


def is_tracing() -> bool:
    """Returns whether a graph is being made."""
    return bool(tf.inside_function())


@contextlib.contextmanager
def outside_of_graphs() -> Iterator[None]:
    """Runs eagerly what is inside, in the midst of a trace too."""
    with tf.init_scope():
        yield


def apply(step: Step) -> None:
    """Updates or skips, on all replicas alike.

    Raises:
        ValueError: Called in a cross-replica context.
    """
    if tf.distribute.in_cross_replica_context():
        raise ValueError("apply() must be called in a replica context.")
    if not tf.distribute.has_strategy():
        update = compiled.updater(step) if compiled.suits(step) else step.update
        _branch(step, step.measure(), update)
        return
    _reduce_gradients(step)
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        with _reduced(step):
            _branch(step, step.measure(), step.update)
    else:
        _apply_on_replicas(step)


def _branch(step: Step, statistics: Statistics, update: Any) -> None:
    def take() -> None:
        step.take(statistics, update)

    def skip() -> None:
        step.skip(statistics)

    tf.cond(statistics.finite, take, skip)


def _reduce_gradients(step: Step) -> None:
    """Sums each gradient over the replicas: an inf or NaN on any of them is one on all."""
    by_dtype: dict[str, list[int]] = {}
    for i, gradient in enumerate(step.gradients):
        if gradient is not None:
            # TensorFlow packs what it reduces together, which takes one dtype.
            by_dtype.setdefault(gradient.dtype.name, []).append(i)
    replica = tf.distribute.get_replica_context()
    for indices in by_dtype.values():
        given = [step.gradients[i] for i in indices]
        sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, given)
        for i, total in zip(indices, sums, strict=True):
            step.gradients[i] = total


@contextlib.contextmanager
def _reduced(step: Step) -> Iterator[None]:
    """For gradients that are summed already: the inner optimizer does not sum again.

    Where it updates in a conditional of its own, it must not leave the replica either, which
    TensorFlow refuses there: then each replica, all of which hold the same sums, updates its own
    copy of the variables, as the methods of the base class do. They also take a composed variable,
    of which TensorFlow has no copies.
    """
    with contextlib.ExitStack() as stack:
        for optimizer in (step.inner, *getattr(step.inner, "optimizers", ())):
            methods: dict[str, Any] = {"_all_reduce_sum_gradients": list}
            if step.branches or step.composed:
                methods |= {n: getattr(_Base, n).__get__(optimizer) for n in _WITHIN_A_REPLICA}
            for name, method in methods.items():
                stack.enter_context(replaced(optimizer, name, method))
        yield


def _apply_on_replicas(step: Step) -> None:
    """Decides once for all replicas, where TensorFlow allows a conditional: between them."""
    statistics = step.measure()
    replica = tf.distribute.get_replica_context()
    replica.merge_call(_apply_across_replicas, args=(step, statistics.finite, statistics.norm))


def _apply_across_replicas(
    strategy: tf.distribute.Strategy, steps: Any, finite: Any, norm: Any
) -> None:
    local = strategy.experimental_local_results
    step: Step = local(steps)[0]
    overflow = tf.reduce_max(tf.stack([tf.cast(~flag, tf.int32) for flag in local(finite)]))
    agreed = Statistics(tf.equal(overflow, 0), local(norm)[0])

    def update(norm: tf.Tensor) -> Decision:
        with _reduced(step):
            decisions = strategy.extended.call_for_each_replica(
                lambda replica_step: tuple(replica_step.update(norm)), args=(steps,)
            )
        clipped, _, state = decisions
        first = {name: local(value)[0] for name, value in state.items()}
        return Decision(local(clipped)[0], 1.0, first)

    _branch(step, agreed, update)
