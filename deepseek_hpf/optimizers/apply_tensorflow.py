"""Runs a step under TensorFlow: plain, with the update compiled by XLA, or on several replicas."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from deepseek_hpf.optimizers import compiled_update_tensorflow as compiled
from deepseek_hpf.optimizers.clipping import Decision
from deepseek_hpf.optimizers.finite import Statistics
from deepseek_hpf.optimizers.step import Step, replaced


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
        _branch(step, step.measure(), lambda norm: _update_reduced(step, norm))
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
    present = [i for i, gradient in enumerate(step.gradients) if gradient is not None]
    replica = tf.distribute.get_replica_context()
    sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, [step.gradients[i] for i in present])
    for i, total in zip(present, sums, strict=True):
        step.gradients[i] = total


def _update_reduced(step: Step, norm: tf.Tensor) -> Decision:
    """Updates with gradients that are summed already: the inner optimizer must not sum again."""
    with contextlib.ExitStack() as stack:
        for optimizer in (step.inner, *getattr(step.inner, "optimizers", ())):
            stack.enter_context(
                replaced(optimizer, "_all_reduce_sum_gradients", lambda pairs: list(pairs))
            )
        return step.update(norm)


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
        decisions = strategy.extended.call_for_each_replica(
            lambda replica_step: tuple(_update_reduced(replica_step, norm)), args=(steps,)
        )
        clipped, _, state = decisions
        first = {name: local(value)[0] for name, value in state.items()}
        return Decision(local(clipped)[0], 1.0, first)

    _branch(step, agreed, update)
