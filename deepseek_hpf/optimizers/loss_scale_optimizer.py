"""The optimizer wrapper: loss scaling, guard against non-finite gradients, clipping, masters."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.config import LossScaleConfig
from deepseek_hpf.optimizers import clipping as clipping_rules
from deepseek_hpf.optimizers.arguments import (
    checked_inner_optimizer,
    python_number,
    refuse_clipping_twice,
)
from deepseek_hpf.optimizers.gradient_watch import NoWatch
from deepseek_hpf.optimizers.kept_run import KeepsRun
from deepseek_hpf.optimizers.masters.composed_variable import built_with
from deepseek_hpf.optimizers.masters.forms import NoMasters, exclude_alike, form_of
from deepseek_hpf.optimizers.masters.master import Master
from deepseek_hpf.optimizers.saved_state import SavesState
from deepseek_hpf.optimizers.stepping import TakesSteps
from deepseek_hpf.optimizers.tracing import is_tracing
from deepseek_hpf.optimizers.transition import ScaleRules, bounded
from deepseek_hpf.optimizers.unconverted import unconverted
from deepseek_hpf.optimizers.watched import Watched

Tensor = Any

DEFAULTS = LossScaleConfig()


@keras.saving.register_keras_serializable(package="deepseek_hpf")
class LossScaleOptimizer(
    KeepsRun, SavesState, TakesSteps, Watched, keras.optimizers.LossScaleOptimizer
):
    """Wraps an optimizer so that no non-finite gradient ever reaches a weight.

    Each step: reduce the gradients over the replicas, check and measure them in one pass; if one
    is not finite on any replica, skip the step on all of them and back off the loss scale, else
    unscale, clip, update, and count towards the next growth of the scale. A skip changes no
    weight, slot, master, accumulator, iteration count or learning-rate schedule.

    Differences from `keras.optimizers.LossScaleOptimizer`: the scale stays within
    `[min_scale, max_scale]`; every replica is asked; clipping, float32 masters and counters.

    With `gradient_accumulation_steps` on the inner optimizer every call of `apply` is one step:
    the norm is that of the average over the window so far, clipping happens at the update, and an
    overflow leaves out its own step only; the window closes one step later.

    Args:
        inner_optimizer: A `keras.optimizers.Optimizer`, or its name or config. Arguments such as
            `weight_decay`, `use_ema` and `gradient_accumulation_steps` belong to it.
        initial_scale: Float, the loss scale at the first step. None turns scaling off; guard,
            clipping and counters remain.
        dynamic_growth_steps: Int. Finite steps in a row after which the scale grows.
        growth_factor: Float above 1. What the scale is multiplied by then.
        backoff_factor: Float between 0 and 1. What the scale is multiplied by at an overflow.
        min_scale: Float. Floor of the scale; may be below 1.
        max_scale: Float. Ceiling of the scale.
        hysteresis: Int. From the n-th overflow in a row on, each one backs off the scale (1: at
            once, as Keras). A finite step resets the count.
        clipping: A rule of `deepseek_hpf.clipping`, or its dict. Refused if the inner optimizer
            clips as well.
        master_weights: True trains float16 and bfloat16 variables by way of float32 masters,
            which are among the optimizer's variables. What is assigned to a model variable from
            outside wins over its master, element by element, at the next step. `"split"` trains
            bfloat16 variables the same, bit by bit, and keeps of their masters only the 16 bits
            that the variables lack. `"stochastic"` has no masters: updates are rounded to the
            variables at random, so that they arrive on average.
        name: String. Name of the optimizer.
        **kwargs: What Keras's class accepts for old saved files.

    Attributes:
        dynamic_scale: The loss scale, float32.
        step_counter: Finite steps since the scale grew or a step was skipped, integer.
        skipped_steps: Steps skipped, integer; never reset.
        clipped_steps: Updates whose gradient was clipped, integer; never reset.
        gradient_norm: Norm of the reduced, accumulated, unscaled gradient before clipping at the
            last update, float32; at a skip, the inf or NaN that was found.
        step_skipped: 1 if the last step was skipped, else 0.
        consecutive_skips: Steps skipped in a row; reset by a finite step.
        consecutive_floor_skips: Steps skipped in a row while the scale was on the floor, or while
            there is no scaling; reset by any other step.

    Raises:
        ConfigError: An argument is out of range, e.g. `initial_scale` outside of
            `[min_scale, max_scale]`, or contradicts the inner optimizer.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> import deepseek_hpf as hpf
        >>> optimizer = hpf.LossScaleOptimizer("adam", clipping=hpf.clipping.GlobalNorm(1.0))
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer, loss="mse")
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
        >>> int(optimizer.skipped_steps)
        0

    References:
        - [Mixed Precision Training](https://arxiv.org/abs/1710.03740)
    """

    telemetry: dict[str, keras.Variable]
    watch: NoWatch
    masters: NoMasters
    _masters: dict[Any, Master]

    def __init__(
        self,
        inner_optimizer: "keras.optimizers.Optimizer | str | Mapping[str, Any]",
        initial_scale: float | None = DEFAULTS.initial_scale,
        dynamic_growth_steps: int = DEFAULTS.growth_steps,
        *,
        growth_factor: float = DEFAULTS.growth_factor,
        backoff_factor: float = DEFAULTS.backoff_factor,
        min_scale: float = DEFAULTS.min_scale,
        max_scale: float = DEFAULTS.max_scale,
        hysteresis: int = DEFAULTS.hysteresis,
        clipping: "clipping_rules.Clipping | Mapping[str, Any] | None" = None,
        master_weights: bool | str = False,
        name: str | None = None,
        **kwargs: Any,
    ):
        inner = checked_inner_optimizer(inner_optimizer)
        scale_config = LossScaleConfig(
            initial_scale=python_number(initial_scale),
            growth_steps=python_number(dynamic_growth_steps),
            growth_factor=python_number(growth_factor),
            backoff_factor=python_number(backoff_factor),
            min_scale=python_number(min_scale),
            max_scale=python_number(max_scale),
            hysteresis=python_number(hysteresis),
        )
        rule = clipping_rules.from_config(clipping)
        refuse_clipping_twice(inner, rule)
        masters = form_of(master_weights)
        super().__init__(
            inner,
            initial_scale=scale_config.initial_scale,
            dynamic_growth_steps=scale_config.growth_steps,
            name=name,
            **kwargs,
        )
        self.scale_rules = ScaleRules.from_config(scale_config)
        self.clipping = rule
        self.master_weights = master_weights
        self.jit_compile_update: bool | None = None
        # In `__dict__` directly: TensorFlow would wrap and track a container set as an attribute.
        self.__dict__.update(telemetry={}, _masters={}, _pending_variables=None)
        self.__dict__.update(watch=NoWatch(), masters=masters)

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled at all."""
        return self.initial_scale is not None

    def current_scale(self) -> Tensor | None:
        """Returns the loss scale as a float32 scalar, or None without scaling."""
        return bounded(self.dynamic_scale, self.scale_rules) if self.scales_loss else None

    @unconverted
    def scale_loss(self, loss: Tensor) -> Tensor:
        """Returns the loss times the loss scale; without scaling, the loss itself."""
        if not self.scales_loss:
            return loss
        return ops.multiply(loss, self.current_scale() if self.built else self.initial_scale)

    def target(self, variable: keras.Variable) -> keras.Variable:
        """Returns what the inner optimizer updates: the variable's master, or the variable."""
        master = self.master(variable)
        return variable if master is None else master.target

    def master(self, variable: keras.Variable) -> Master | None:
        """Returns what is kept of a variable beside it; None where it is trained as it is."""
        return self._masters.get(self._var_key(variable))

    def clipping_state(self) -> dict[str, Tensor]:
        """Returns the state of the clipping rule, float32 scalars by name."""
        names = self.clipping.initial_state() if self.clipping else ()
        return {name: ops.convert_to_tensor(self.telemetry[name]) for name in names}

    def build(self, var_list: Sequence[keras.Variable]) -> None:
        """Creates the wrapper's variables, the masters, and those of the inner optimizer.

        Args:
            var_list: The model's trainable variables.
        """
        if self.built:
            return
        variables = list(var_list)
        # In the order of Keras's wrapper, so that its files can be read.
        self.step_counter = self._own_variable("step_counter", "int")
        self.dynamic_scale = self._own_variable("dynamic_scale", "float32", self._first_scale())
        for name in ("skipped_steps", "clipped_steps", "step_skipped"):
            setattr(self, name, self._own_variable(name, "int"))
        for name in ("consecutive_skips", "consecutive_floor_skips"):
            setattr(self, name, self._own_variable(name, "int"))
        self.gradient_norm = self._own_variable("gradient_norm", "float32")
        self.telemetry["gradient_norm"] = self.gradient_norm
        for name, value in (self.clipping.initial_state() if self.clipping else {}).items():
            self.telemetry[name] = self._own_variable(name, "float32", value)
        self._build_inner(variables)
        self.watch.build(self, variables)
        # Past Keras's wrapper, which would create its two variables once more.
        super(keras.optimizers.LossScaleOptimizer, self).build(variables)
        self.assign_pending()

    def _build_inner(self, variables: Sequence[keras.Variable]) -> None:
        masters = self.masters.create(variables, self.add_variable, tracing=is_tracing())
        self._masters.update((self._var_key(master.variable), master) for master in masters)
        targets = [self.target(variable) for variable in variables]
        exclude_alike(self.inner_optimizer, masters)
        if not self.inner_optimizer.built:
            with built_with(self.inner_optimizer, targets):
                self.inner_optimizer.build(targets)

    def _own_variable(self, name: str, dtype: str, value: float = 0.0) -> keras.Variable:
        initializer = keras.initializers.Constant(value)
        return self.add_variable((), initializer, dtype, aggregation="none", name=name)

    def _first_scale(self) -> float:
        return 1.0 if self.initial_scale is None else self.initial_scale

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        """Sets the variables to their final values, e.g. their moving averages (`use_ema`)."""
        targets = [self.target(variable) for variable in var_list]
        self.inner_optimizer.finalize_variable_values(targets)
        if self.inner_optimizer.use_ema:
            for master in filter(None, map(self.master, var_list)):
                master.end()

    def get_config(self) -> dict[str, Any]:
        """Returns the config: Keras's four keys, and those arguments that are not the default."""
        config: dict[str, Any] = super().get_config()
        defaults = ScaleRules.from_config(DEFAULTS)
        for name in ("growth_factor", "backoff_factor", "min_scale", "max_scale", "hysteresis"):
            if getattr(self.scale_rules, name) != getattr(defaults, name):
                config[name] = getattr(self.scale_rules, name)
        if self.clipping is not None:
            config["clipping"] = self.clipping.get_config()
        if self.master_weights:
            config["master_weights"] = self.master_weights
        return config

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "LossScaleOptimizer":
        """Creates an optimizer from its config, of this class or of Keras's wrapper."""
        # Keras's pops from the dict it is given.
        return super().from_config(dict(config), custom_objects=custom_objects)
