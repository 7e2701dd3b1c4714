"""Gradient clipping rules: frozen, serialisable, applied to the unscaled, reduced gradient."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from keras import ops

from deepseek_hpf import config as configuration
from deepseek_hpf.errors import ConfigError, ConfigTypeError

Tensor = Any


class Decision(NamedTuple):
    """What a rule found for the gradients of one step.

    Attributes:
        clipped: Boolean scalar: a gradient is made smaller.
        divisor: What the gradients are divided by: one scalar for all, or a list with a tensor for
            each.
        state: The rule's state after the step, by name.
    """

    clipped: Tensor
    divisor: Tensor | list[Tensor]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Clipping:
    """Base of the rules.

    `decide` looks at the gradients and changes nothing, `apply` carries the decision out. They are
    apart so that an optimizer which accumulates gradients decides outside of the conditional in
    which it updates.
    """

    kind: ClassVar[str]
    by_norm: ClassVar[bool] = False
    """Whether the decision is one divisor for all gradients, drawn from the global norm alone."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_positive(type(self).__name__, field.name, getattr(self, field.name))

    def initial_state(self) -> dict[str, float]:
        """Returns the names and first values of the float32 scalars that the rule keeps."""
        return {}

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Decides how far to clip.

        Args:
            gradients: Finite dense float tensors.
            weights: The variables they belong to, of the same shapes.
            norm: Global norm of the gradients, float32 scalar.
            state: The rule's state before the step.

        Returns:
            The `Decision`.
        """
        raise NotImplementedError

    def apply(self, gradients: Sequence[Tensor], divisor: Tensor | list[Tensor]) -> list[Tensor]:
        """Returns the gradients, clipped as decided."""
        if isinstance(divisor, list):
            return [ops.divide(g, d) for g, d in zip(gradients, divisor, strict=True)]
        return [ops.divide(gradient, divisor) for gradient in gradients]

    def get_config(self) -> dict[str, Any]:
        """Returns `kind` and the rule's arguments; `from_config` reads it back."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class GlobalNorm(Clipping):
    """Scales all gradients together so that their global norm is at most `max_norm`.

    `g <- g / max(1, norm / max_norm)`: the direction stays.

    Args:
        max_norm: Largest norm that is left as it is, in units of the gradient.

    Example:
        >>> import deepseek_hpf as hpf
        >>> hpf.LossScaleOptimizer("adam", clipping=hpf.clipping.GlobalNorm(1.0)).clipping
        GlobalNorm(max_norm=1.0)

    References:
        - [On the difficulty of training recurrent neural networks](https://arxiv.org/abs/1211.5063)
    """

    max_norm: float
    kind: ClassVar[str] = "global_norm"
    by_norm: ClassVar[bool] = True

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Compares the norm with `max_norm`."""
        return _shrunk_to(norm, self.max_norm, {})


@dataclass(frozen=True)
class Value(Clipping):
    """Cuts each number of a gradient to `[-limit, limit]`.

    Args:
        limit: Largest magnitude that is left as it is, in units of the gradient.

    Example:
        >>> from deepseek_hpf.optimizers import clipping
        >>> clipping.Value(0.5).get_config()
        {'kind': 'value', 'limit': 0.5}
    """

    limit: float
    kind: ClassVar[str] = "value"

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Looks for a number beyond the limit."""
        beyond = [ops.any(ops.greater(ops.abs(g), self.limit)) for g in gradients]
        return Decision(_any(beyond), 1.0, {})

    def apply(self, gradients: Sequence[Tensor], divisor: Tensor | list[Tensor]) -> list[Tensor]:
        """Returns the gradients, cut: a quotient would miss the limit by a rounding."""
        return [ops.clip(gradient, -self.limit, self.limit) for gradient in gradients]


@dataclass(frozen=True)
class Adaptive(Clipping):
    """Limits each unit's gradient norm to `ratio` times the norm of its weights, as NFNets do.

    `g_i <- g_i / max(1, |g_i| / (ratio * max(|w_i|, epsilon)))`, where a unit `i` is an index of
    the last axis, which Keras keeps for outputs; vectors and scalars are one unit.

    Args:
        ratio: Largest ratio of a unit's gradient norm to its weight norm; 0.01 to 0.16 is usual,
            smaller for larger batches.
        epsilon: Least weight norm, so that weights that start at zero can move.

    Example:
        >>> from deepseek_hpf.optimizers import clipping
        >>> clipping.Adaptive(0.01)
        Adaptive(ratio=0.01, epsilon=0.001)

    References:
        - [High-Performance Large-Scale Image Recognition Without Normalization](
          https://arxiv.org/abs/2102.06171), section 4
    """

    ratio: float
    epsilon: float = 1e-3
    kind: ClassVar[str] = "adaptive"

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Compares each unit's gradient with its weights."""
        excesses = [
            ops.divide(_unit_norm(g), self._allowed(w))
            for g, w in zip(gradients, weights, strict=True)
        ]
        clipped = _any([ops.any(ops.greater(excess, 1.0)) for excess in excesses])
        return Decision(clipped, [ops.maximum(excess, 1.0) for excess in excesses], {})

    def _allowed(self, weight: Tensor) -> Tensor:
        return ops.multiply(ops.maximum(_unit_norm(weight), self.epsilon), self.ratio)


@dataclass(frozen=True)
class Anomaly(Clipping):
    """Cuts a global norm that is an outlier of its own running statistics.

    With `x = log(norm)` and the running mean `m` and standard deviation `s` of the steps before, a
    step is cut to the norm `exp(m + margin)` if `x > m + margin`, where

    - `margin = max(z * s, log 2)`: a norm within twice the usual one is never an anomaly;
    - in the first `warmup` steps `margin = max(z * s, log 1000)`; the very first step is taken as
      it is.

    Then `m` and `s` take in `x`, cut to `m ± margin`, so that an anomaly moves them no further than
    the bound it was cut to, while a lasting change of level is adopted within some steps. All
    steps weigh the same up to the `1 / (1 - decay)`-th; from then on older ones fade by `decay` a
    step. Norms of 0 are left out.

    Args:
        z: Standard deviations above the mean of the log-norm from which a norm is an outlier.
        decay: Factor a step on the weight of older steps, below 1.
        warmup: Steps with the wider margin.

    Example:
        >>> from deepseek_hpf.optimizers import clipping
        >>> clipping.Anomaly(z=4.0)
        Anomaly(z=4.0, decay=0.99, warmup=100)
    """

    z: float = configuration.AnomalyConfig.model_fields["z"].default
    decay: float = 0.99
    warmup: int = 100
    kind: ClassVar[str] = "anomaly"
    by_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay >= 1:
            raise ConfigError(
                f"Argument `decay` of Anomaly must be below 1. Received: decay={self.decay!r}"
            )

    def initial_state(self) -> dict[str, float]:
        """Returns the running mean and variance of the log-norm, and the steps they hold."""
        return {"log_norm_mean": 0.0, "log_norm_variance": 0.0, "log_norm_steps": 0.0}

    def decide(
        self,
        gradients: Sequence[Tensor],
        weights: Sequence[Tensor],
        norm: Tensor,
        state: Mapping[str, Tensor],
    ) -> Decision:
        """Compares the log-norm with its running statistics, then updates them."""
        mean, steps = state["log_norm_mean"], state["log_norm_steps"]
        margin = self._margin(state["log_norm_variance"], steps)
        bound = ops.where(ops.equal(steps, 0.0), math.inf, ops.exp(ops.add(mean, margin)))
        positive = ops.greater(norm, 0.0)
        log_norm = ops.log(ops.where(positive, norm, 1.0))
        deviation = ops.subtract(log_norm, mean)
        cut = ops.maximum(ops.minimum(deviation, margin), ops.negative(margin))
        deviation = ops.where(ops.equal(steps, 0.0), deviation, cut)
        updated = self._updated(state, deviation)
        kept = {name: ops.where(positive, updated[name], state[name]) for name in updated}
        return _shrunk_to(norm, bound, kept)

    def _margin(self, variance: Tensor, steps: Tensor) -> Tensor:
        least = ops.where(ops.less(steps, float(self.warmup)), math.log(1000.0), math.log(2.0))
        return ops.maximum(ops.multiply(ops.sqrt(variance), self.z), least)

    def _updated(self, state: Mapping[str, Tensor], deviation: Tensor) -> dict[str, Tensor]:
        steps = ops.add(state["log_norm_steps"], 1.0)
        weight = ops.maximum(ops.divide(1.0, steps), 1.0 - self.decay)
        shift = ops.multiply(weight, deviation)
        spread = ops.add(state["log_norm_variance"], ops.multiply(shift, deviation))
        return {
            "log_norm_mean": ops.add(state["log_norm_mean"], shift),
            "log_norm_variance": ops.multiply(ops.subtract(1.0, weight), spread),
            # float32 counts to 2**24 and then stays; the weight has long been constant.
            "log_norm_steps": steps,
        }


RULES: dict[str, type[Clipping]] = {
    rule.kind: rule for rule in (GlobalNorm, Value, Adaptive, Anomaly)
}


def from_config(
    config: "Clipping | configuration.Clipping | Mapping[str, Any] | None",
) -> Clipping | None:
    """Returns the rule that a configuration describes.

    Args:
        config: A section `clipping` of `PrecisionConfig`, a dict such as `get_config` returns, a
            rule (returned as it is), or None.

    Returns:
        The rule, or None.

    Raises:
        ConfigError: The kind, an argument or its value is unknown.
        ConfigTypeError: It is none of these.

    Example:
        >>> from deepseek_hpf.optimizers import clipping
        >>> clipping.from_config({"kind": "adaptive", "ratio": 0.02})
        Adaptive(ratio=0.02, epsilon=0.001)
    """
    if config is None or isinstance(config, Clipping):
        return config
    if isinstance(config, configuration.ConfigSection) and hasattr(config, "kind"):
        config = config.model_dump()
    if not isinstance(config, Mapping):
        raise ConfigTypeError(
            "Argument `clipping` must be a rule of `deepseek_hpf.clipping`, e.g. "
            '`GlobalNorm(1.0)`, its dict, e.g. `{"kind": "value", "limit": 0.5}`, or None. '
            f"Received: clipping={config!r} (of type {type(config).__name__})"
        )
    arguments = dict(config)
    kind = arguments.pop("kind", None)
    if kind not in RULES:
        known = ", ".join(repr(name) for name in RULES)
        raise ConfigError(f"The `kind` of clipping must be one of {known}. Received: kind={kind!r}")
    try:
        return RULES[kind](**arguments)
    except TypeError as error:
        raise ConfigTypeError(
            f"These are not the arguments of {RULES[kind].__name__}: {error}. "
            f"Received: clipping={dict(config)!r}"
        ) from error


def _shrunk_to(norm: Tensor, bound: Tensor | float, state: dict[str, Tensor]) -> Decision:
    # Where nothing is cut the divisor is exactly 1 and leaves every bit.
    divisor = ops.maximum(ops.divide(norm, bound), 1.0)
    return Decision(ops.greater(norm, bound), divisor, state)


def _unit_norm(tensor: Tensor) -> Tensor:
    """Norm over all axes but the last, axes kept; scaled, so that no square overflows."""
    magnitudes = ops.cast(ops.abs(tensor), "float32")
    if 0 in magnitudes.shape:
        return ops.ones((1,) * len(magnitudes.shape), "float32")
    axes = tuple(range(max(len(magnitudes.shape) - 1, 0))) or None
    largest = ops.max(magnitudes, axis=axes, keepdims=True)
    unit = ops.where(ops.greater(largest, 0.0), largest, 1.0)
    sums = ops.sum(ops.square(ops.divide(magnitudes, unit)), axis=axes, keepdims=True)
    return ops.multiply(largest, ops.sqrt(sums))


def _any(flags: Sequence[Tensor]) -> Tensor:
    return ops.any(ops.stack(flags)) if flags else ops.convert_to_tensor(False)


def _check_positive(owner: str, name: str, value: object) -> None:
    wanted = f"Argument `{name}` of {owner} must be a positive, finite number."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(
            f"{wanted} Received: {name}={value!r} (of type {type(value).__name__})"
        )
    # Below it float32, in which the step computes, may flush to zero.
    if not configuration.FLOAT32_TINY <= value <= configuration.FLOAT32_MAX:
        raise ConfigError(f"{wanted} Received: {name}={value!r}")
