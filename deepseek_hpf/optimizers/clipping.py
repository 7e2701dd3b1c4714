"""Gradient clipping rules: frozen, serialisable, applied to the unscaled, reduced gradient."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from keras import ops

from deepseek_hpf import config as configuration
from deepseek_hpf.errors import ConfigError, ConfigTypeError
from deepseek_hpf.optimizers.clipping_anomaly import Anomaly as Anomaly
from deepseek_hpf.optimizers.clipping_rule import Clipping as Clipping
from deepseek_hpf.optimizers.clipping_rule import Decision, shrunk_to

Tensor = Any


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
        return shrunk_to(norm, self.max_norm, {})


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
