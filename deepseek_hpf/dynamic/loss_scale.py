"""The loss scale, set from the host while a model trains, and a rule that foresees overflows."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.skip_causes import protecting_optimizer
from deepseek_hpf.config_dynamic import DynamicConfig
from deepseek_hpf.config_wording import shown
from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.optimizers.scale_rule import ScaleRules
from deepseek_hpf.scheduling.log_normal import LogNormal
from deepseek_hpf.scheduling.predictive_scale import PredictiveScale
from deepseek_hpf.scheduling.telemetry import Telemetry


def set_loss_scale(model: keras.Model, scale: float) -> float:
    """Sets the loss scale of a model that trains; the next step is the first one with it.

    May be called between two steps of `fit`, from `on_train_batch_begin`, and outside of `fit`.
    Nothing else is set: the finite steps since the scale last moved count on, and so do the skips.

    Args:
        model: A model compiled with a `LossScaleOptimizer` that scales the loss, built.
        scale: The scale; outside of `[min_scale, max_scale]`, the nearer bound is set.

    Returns:
        The scale that is set, as float32 holds it.

    Raises:
        ConfigError: The scale is not a positive finite number.
        PrecisionError: There is no loss scale to set.

    Example:
        >>> import deepseek_hpf as hpf
        >>> from deepseek_hpf.dynamic.loss_scale import set_loss_scale
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile(hpf.LossScaleOptimizer("sgd", max_scale=2**16), loss="mse")
        >>> model.optimizer.build(model.trainable_variables)
        >>> set_loss_scale(model, 1024.0), set_loss_scale(model, 2.0**20)
        (1024.0, 65536.0)
    """
    if isinstance(scale, bool) or not (0.0 < scale < math.inf):
        raise ConfigError(f"expected a scale that is positive and finite. Received: {shown(scale)}")
    optimizer = protecting_optimizer(model)
    if optimizer is None or not optimizer.built or not optimizer.scales_loss:
        raise PrecisionError(
            f"Expected a model whose built optimizer scales the loss. Received: {model.name!r} "
            f"with the optimizer {getattr(model, 'optimizer', None)!r}. Compile the model with a "
            "`LossScaleOptimizer` whose `initial_scale` is not None, and train it first."
        )
    rules = optimizer.scale_rules
    value = np.float32(max(rules.min_scale, min(rules.max_scale, float(scale))))
    if keras.backend.backend() == "jax":
        # `fit` holds the values in its own state, and reads the variables anew after this.
        model.jax_state_sync()
    optimizer.dynamic_scale.assign(value)
    return float(value)


class PredictiveScaling:
    """Has the loss scale follow the largest gradients, if the configuration asks for it.

    Each read-out of telemetry is a look at the largest gradient; each overflow for its loss scale
    is a look at one just beyond the range. `PredictiveScale` says what follows from them.

    Args:
        config: Its `predictive_scale` turns this on.
        rules: `optimizer.scale_rules`, whose bounds hold.

    Example:
        >>> from deepseek_hpf.config import DynamicConfig
        >>> from deepseek_hpf.dynamic.loss_scale import PredictiveScaling
        >>> from deepseek_hpf.optimizers.scale_rule import ScaleRules
        >>> from deepseek_hpf.scheduling.telemetry import GradientStatistics, Telemetry
        >>> scaling = PredictiveScaling(DynamicConfig(predictive_scale=True), ScaleRules())
        >>> layers = {"stem": {"kernel": GradientStatistics(elements=6, largest=64.0)}}
        >>> for step in range(50, 501, 50):
        ...     read = Telemetry(step=step, steps=50, scale=2.0**15, layers=layers)
        ...     proposed = scaling.observe(read)
        >>> proposed
        512.0
    """

    def __init__(self, config: DynamicConfig, rules: ScaleRules):
        self._on = config.predictive_scale
        self._rule = PredictiveScale(min_scale=rules.min_scale, max_scale=rules.max_scale)
        self._seen = LogNormal()

    def observe(self, telemetry: Telemetry, layers: Collection[str] | None = None) -> float | None:
        """Takes in a read-out.

        Args:
            telemetry: What the steps since the last call say.
            layers: Paths of the layers whose gradients can overflow; by default all.

        Returns:
            The scale to go on with; None where it stays, or where there are too few looks yet.
        """
        if not self._on or telemetry.scale is None:
            return None
        paths = telemetry.layers if layers is None else layers
        for overflow in telemetry.overflows:
            of_these = layers is None or overflow.layer is None or overflow.layer in layers
            if overflow.cause == "loss_scale" and overflow.scale is not None and of_these:
                self._seen = self._rule.observe(self._seen, math.inf, overflow.scale)
        self._seen = self._rule.observe(self._seen, telemetry.of(paths).largest, telemetry.scale)
        proposed = self._rule.propose(self._seen)
        return None if proposed == telemetry.scale else proposed

    def get_state(self) -> dict[str, Any]:
        """Returns the statistics, as JSON values."""
        return dataclasses.asdict(self._seen)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state.

        Args:
            state: What `get_state` returned.

        Raises:
            ConfigError: The state is no such state.
        """
        try:
            seen = LogNormal(float(state["mean"]), float(state["variance"]), int(state["count"]))
            fits = math.isfinite(seen.mean) and 0 <= seen.variance < math.inf and seen.count >= 0
        except (LookupError, TypeError, ValueError) as error:
            raise _no_state(state, f" ({error})") from None
        if not fits:
            raise _no_state(state, "")
        self._seen = seen


def _no_state(state: object, why: str) -> ConfigError:
    return ConfigError(
        f"expected a state of the predictive loss scale{why}. Received: {shown(state)}. "
        "Start anew, or with the state of that run."
    )
