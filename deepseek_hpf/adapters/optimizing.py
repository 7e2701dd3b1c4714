"""Gives a model the guarded, loss-scaling optimizer, and its compile configuration the same."""

import contextlib
import functools

import keras

from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.wrap import unwrap_optimizer, wrap_optimizer


def set_optimizer(
    model: keras.Model, config: PrecisionConfig, *, scales_loss: bool, log: UndoLog
) -> tuple[bool, str]:
    """Wraps the optimizer of a compiled model.

    Args:
        model: The model.
        config: The configuration.
        scales_loss: Whether anything computes in float16.
        log: Where to write how to take it back.

    Returns:
        Whether the optimizer is another one than before, and a line for the report.
    """
    before = model.optimizer if model.compiled else None
    if before is None:
        without = "none: the model is not compiled"
        if scales_loss:
            without += "; a loop of one's own needs a LossScaleOptimizer, as layers are in float16"
        return False, without
    wrapped = wrap_optimizer(before, config, scales_loss=scales_loss)
    changed = wrapped is not before
    if changed:
        _start_at_own_scale(before, wrapped)
        model.optimizer = wrapped
        log.record(functools.partial(_take_back, model, wrapped))
        # What is in here is what `model.save` writes.
        log.set_item(model._compile_config.config, "optimizer", wrapped)
    _build(model, wrapped)
    return changed, _line(wrapped)


def _start_at_own_scale(before: keras.optimizers.Optimizer, wrapped: LossScaleOptimizer) -> None:
    """The scale of a wrapper that Keras put around the optimizer and that has not moved is none."""
    if not before.built or not wrapped.scales_loss or type(before) is LossScaleOptimizer:
        return
    if not isinstance(before, keras.optimizers.LossScaleOptimizer):
        return
    if int(before.step_counter) == 0 and float(before.dynamic_scale) == before.initial_scale:
        wrapped.dynamic_scale.assign(wrapped.initial_scale)


def _take_back(model: keras.Model, wrapped: LossScaleOptimizer) -> None:
    if model.optimizer is wrapped:
        model.optimizer = unwrap_optimizer(wrapped)


def _build(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """JAX and PyTorch build the optimizer before the callbacks run, that is, the one of before."""
    if optimizer.built or not model.trainable_variables:
        return
    if not all(layer.built for layer in model._flatten_layers()):
        return
    strategy = getattr(model, "distribute_strategy", None)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        optimizer.build(model.trainable_variables)


def _line(optimizer: LossScaleOptimizer) -> str:
    inner = type(optimizer.inner_optimizer).__name__
    scaling = "scales the loss" if optimizer.scales_loss else "no loss scaling (nothing in float16)"
    return f"{inner} in LossScaleOptimizer: {scaling}; skips steps with non-finite gradients"
