"""Puts an optimizer into our wrapper with the state it has, and takes it out again."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.optimizers import clipping as clipping_rules
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.transition import bounded

Arguments = dict[str, Any]

CARRIED = (
    "step_counter",
    "dynamic_scale",
    "skipped_steps",
    "clipped_steps",
    "step_skipped",
    "consecutive_skips",
    "consecutive_floor_skips",
    "gradient_norm",
)
EXCLUSIONS = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


class _Origin:
    """What an optimizer was made from; a plain object, so that it is not saved with it."""

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.optimizer = optimizer
        self.loss_scale_factor = inner_of(optimizer).loss_scale_factor


def wrap_optimizer(
    optimizer: keras.optimizers.Optimizer, config: PrecisionConfig, *, scales_loss: bool
) -> LossScaleOptimizer:
    """Returns the optimizer in a `LossScaleOptimizer` that follows the configuration.

    What the configuration sets counts; what it leaves out stays as the optimizer has it. Slots,
    iteration count, loss scale and counters are carried over. The inner optimizer is shared, except
    with master weights, where it is a copy that works on them.

    Args:
        optimizer: A plain Keras optimizer, Keras's `LossScaleOptimizer` or ours, built or not.
        config: The configuration.
        scales_loss: Whether the loss has to be scaled, as it does where anything computes in
            float16.

    Returns:
        The wrapper; the optimizer itself if it already is as wanted.

    Raises:
        ConfigError: The configuration clips, and the optimizer does too.

    Example:
        >>> import keras
        >>> from deepseek_hpf import PrecisionConfig
        >>> from deepseek_hpf.optimizers.wrap import unwrap_optimizer, wrap_optimizer
        >>> adam = keras.optimizers.Adam()
        >>> wrapped = wrap_optimizer(adam, PrecisionConfig(), scales_loss=True)
        >>> wrapped.inner_optimizer is adam, unwrap_optimizer(wrapped) is adam
        (True, True)
    """
    arguments = _arguments(optimizer, config, scales_loss)
    if type(optimizer) is LossScaleOptimizer and _arguments_of(optimizer) == arguments:
        return optimizer
    with _strategy_scope(optimizer):
        origin = _Origin(optimizer)
        inner = inner_of(optimizer)
        if arguments["master_weights"] or getattr(optimizer, "master_weights", False):
            inner = _unbuilt_copy(inner)
        wrapped = LossScaleOptimizer(inner, **arguments)
        wrapped.__dict__["_origin"] = origin
        if optimizer.built:
            wrapped.build(optimizer._trainable_variables)
            _carry_state(optimizer, wrapped)
    return wrapped


def unwrap_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `wrap_optimizer` was given, with the state of the wrapper.

    Args:
        optimizer: What `wrap_optimizer` returned.

    Returns:
        What it was given, as far trained as the wrapper; any other optimizer as it is.
    """
    origin: _Origin | None = vars(optimizer).get("_origin")
    if origin is None:
        return optimizer
    before = origin.optimizer
    if optimizer.built:
        with _strategy_scope(before):
            if not before.built:
                before.build(optimizer._trainable_variables)
            _carry_state(optimizer, before)
    inner_of(before).loss_scale_factor = origin.loss_scale_factor
    return before


def inner_of(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer inside of a loss-scale optimizer, or the optimizer itself."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _arguments_of(optimizer: LossScaleOptimizer) -> Arguments:
    """The arguments with which an optimizer of ours would be made again."""
    rules = optimizer.scale_rules
    return {
        "initial_scale": optimizer.initial_scale,
        "dynamic_growth_steps": rules.growth_steps,
        "growth_factor": rules.growth_factor,
        "backoff_factor": rules.backoff_factor,
        "min_scale": rules.min_scale,
        "max_scale": rules.max_scale,
        "hysteresis": rules.hysteresis,
        "clipping": optimizer.clipping,
        "master_weights": optimizer.master_weights,
        "name": optimizer.name,
    }


def _arguments(
    optimizer: keras.optimizers.Optimizer, config: PrecisionConfig, scales_loss: bool
) -> Arguments:
    """The arguments wanted: the optimizer's own, then what the configuration sets."""
    scale_values = config.loss_scale.model_dump()
    scale_values["dynamic_growth_steps"] = scale_values.pop("growth_steps")
    arguments: Arguments = {
        **scale_values,
        "clipping": clipping_rules.from_config(config.clipping),
        "master_weights": config.master_weights,
        "name": None,
    }
    own = _own_arguments(optimizer)
    given = {"dynamic_growth_steps" if k == "growth_steps" else k for k in _given(config)}
    arguments |= {name: value for name, value in own.items() if name not in given}
    if not scales_loss:
        arguments["initial_scale"] = None
    elif arguments["initial_scale"] is None and "initial_scale" not in given:
        arguments["initial_scale"] = config.loss_scale.initial_scale
    _reconcile_bounds(arguments, given)
    return arguments


def _own_arguments(optimizer: keras.optimizers.Optimizer) -> Arguments:
    if isinstance(optimizer, LossScaleOptimizer):
        return _arguments_of(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        names = ("initial_scale", "dynamic_growth_steps", "name")
        return {name: getattr(optimizer, name) for name in names}
    return {}


def _given(config: PrecisionConfig) -> set[str]:
    given = config.model_fields_set & {"clipping", "master_weights"}
    return given | (config.loss_scale.model_fields_set if config.loss_scale else set())


def _reconcile_bounds(arguments: Arguments, given: set[str]) -> None:
    """Where scale and bounds come from two sources, what the configuration sets wins."""
    scale = arguments["initial_scale"]
    if scale is None:
        return
    if scale > arguments["max_scale"]:
        arguments["initial_scale" if "max_scale" in given else "max_scale"] = (
            arguments["max_scale"] if "max_scale" in given else scale
        )
    elif scale < arguments["min_scale"]:
        arguments["initial_scale" if "min_scale" in given else "min_scale"] = (
            arguments["min_scale"] if "min_scale" in given else scale
        )


def _unbuilt_copy(inner: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    copy = type(inner).from_config(inner.get_config())
    for name in EXCLUSIONS:
        if name in vars(inner):
            vars(copy)[name] = vars(inner)[name]
    return copy


def _carry_state(
    source: keras.optimizers.Optimizer, destination: keras.optimizers.Optimizer
) -> None:
    """Copies slots, masters, scale and counters, as far as both have them."""
    inner, new_inner = inner_of(source), inner_of(destination)
    if new_inner is not inner:
        _assign_all(inner.variables, new_inner.variables)
    pairs = [(vars(source).get(n), vars(destination).get(n)) for n in CARRIED]
    for old, new in pairs:
        if old is not None and new is not None:
            _copy_to(new, old)
    if isinstance(destination, LossScaleOptimizer):
        scale = destination.dynamic_scale
        scales = destination.scales_loss
        scale.assign(bounded(scale, destination.scale_rules) if scales else 1.0)
    if isinstance(source, LossScaleOptimizer) and isinstance(destination, LossScaleOptimizer):
        _carry_own_state(source, destination)


def _carry_own_state(source: LossScaleOptimizer, destination: LossScaleOptimizer) -> None:
    if source.clipping == destination.clipping:
        for name, value in source.clipping_state().items():
            _copy_to(destination.telemetry[name], value)
    for variable in destination._trainable_variables:
        old, new = source.master(variable), destination.master(variable)
        if old is not None and new is not None:
            # JAX's training step takes over the arrays of its variables: no two may share one.
            new.take_over(ops.copy(old.weights()))
    if type(source.masters) is type(destination.masters):
        _assign_all(source.masters.variables, destination.masters.variables)


def _assign_all(sources: Sequence[keras.Variable], destinations: Sequence[keras.Variable]) -> None:
    for source, destination in zip(sources, destinations, strict=True):
        _copy_to(destination, ops.cast(source, destination.dtype))


def _copy_to(destination: keras.Variable, value: Any) -> None:
    # JAX's training step takes over the arrays of its variables: no two may share one.
    destination.assign(ops.copy(value))


def _strategy_scope(
    optimizer: keras.optimizers.Optimizer,
) -> contextlib.AbstractContextManager[Any]:
    """The scope of the distribution strategy that the optimizer was made in (TensorFlow)."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
