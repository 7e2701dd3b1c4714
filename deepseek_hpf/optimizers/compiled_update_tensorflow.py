"""The update compiled by XLA on its own, inside a TensorFlow step that is not.

An update is some ten elementwise operations on every variable. TensorFlow's runtime starts them one
by one and stores what is between them; XLA makes one loop for each variable. Variables with sparse
gradients are left to TensorFlow, and to Keras's rules for rows that are given twice.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.optimizers.adam_8bit import MomentsIn8Bits
from deepseek_hpf.optimizers.clipping_rule import Decision
from deepseek_hpf.optimizers.replacement import replaced
from deepseek_hpf.optimizers.step import Step

logger = logging.getLogger(__name__)

# Below it an update takes well under a millisecond, and compiling it would never pay.
LEAST_ELEMENTS = 1_000_000
MOST_VARIABLES = 1_000


def updater(step: Step) -> Callable[[tf.Tensor], Decision]:
    """Returns `step.update`, compiled; with sparse gradients, the inner optimizer's part of it."""
    if any(isinstance(gradient, tf.IndexedSlices) for gradient in step.gradients):
        return functools.partial(_update_apart, step)

    def update(norm: tf.Tensor) -> Decision:
        @tf.function(jit_compile=True, autograph=False)
        def compiled(norm: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            decision = step.update(norm)
            return decision.clipped, decision.state

        clipped, state = compiled(norm)
        return Decision(clipped, 1.0, state)

    return update


def _update_apart(step: Step, norm: tf.Tensor) -> Decision:
    """The update, compiled for the variables whose gradients are dense."""
    plain = step.inner._backend_update_step

    def update(gradients: Any, variables: Any, rate: Any) -> None:
        pairs = list(zip(gradients, variables, strict=True))
        sparse = [pair for pair in pairs if isinstance(pair[0], tf.IndexedSlices)]
        dense = [pair for pair in pairs if not isinstance(pair[0], tf.IndexedSlices)]

        @tf.function(jit_compile=True, autograph=False)
        def compiled() -> None:
            plain(*zip(*dense, strict=True), rate)

        compiled()
        if sparse:
            plain(*zip(*sparse, strict=True), rate)

    with replaced(step.inner, "_backend_update_step", update):
        return step.update(norm)


def suits(step: Step) -> bool:
    """Returns whether the update pays to be compiled, and is known to be compilable.

    `optimizer.jit_compile_update` False forbids it, True lifts the least size. XLA may compute in
    more precision than asked between float16 or bfloat16 operations, so only float32 is compiled:
    there it differs by no more than the rounding of fused operations.
    """
    wanted = step.optimizer.jit_compile_update
    if wanted is False or not tf.inside_function() or not _compilable(step):
        return False
    elements = sum(gradient.shape.num_elements() for gradient in _dense_gradients(step))
    large = elements >= LEAST_ELEMENTS and len(step.targets) <= MOST_VARIABLES
    return (large or (bool(wanted) and elements > 0)) and _xla_works()


def _compilable(step: Step) -> bool:
    inner = step.inner
    rate = getattr(inner, "_learning_rate", None)
    return (
        (_is_keras(inner) or isinstance(inner, MomentsIn8Bits))
        and (isinstance(rate, keras.Variable) or _is_keras(rate))
        and not step.accumulation_steps
        and not inner.use_ema
        and all(gradient.shape.is_fully_defined() for gradient in _dense_gradients(step))
        and all(_plain(target) for target in step.targets)
    )


def _is_keras(instance: object) -> bool:
    return type(instance).__module__.split(".")[0] == "keras"


def _value(variable: keras.Variable) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _dense_gradients(step: Step) -> list[tf.Tensor]:
    return [gradient for gradient in step.gradients if isinstance(gradient, tf.Tensor)]


def _plain(target: keras.Variable) -> bool:
    constraint = getattr(target, "constraint", None)
    return (constraint is None or _is_keras(constraint)) and _value(target).dtype == tf.float32


@functools.cache
def _xla_works() -> bool:
    """Compiles something small, once a process: builds of TensorFlow without XLA exist."""
    try:
        with tf.init_scope():
            tf.function(lambda x: x + 1.0, jit_compile=True)(tf.constant(1.0))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        logger.info("XLA does not work here; the optimizer's update runs uncompiled: %s", error)
        return False
    return True
