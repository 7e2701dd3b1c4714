"""A loss scale that follows the largest gradients, and so backs off before they overflow."""

import math
from dataclasses import dataclass

from deepseek_hpf.dtypes import format_of
from deepseek_hpf.scheduling.log_normal import LogNormal


@dataclass(frozen=True, kw_only=True)
class PredictiveScale:
    """Chooses the scale at which the largest gradient rarely overflows.

    With `m` and `s` the running mean and standard deviation of the logarithm of the largest
    magnitude among the unscaled gradients,

        scale = 2 ** floor(log2(largest number of the format / exp(m + z * s)))

    within `[min_scale, max_scale]`: a power of two, which rounds nothing.

    Args:
        z: Standard deviations above the mean that are kept free.
        min_scale: Floor of the scale.
        max_scale: Ceiling of the scale.
        dtype: Format that must not overflow.
        decay: Factor a look on the weight of older looks, below 1.
        warmup: Looks before the first proposal.

    Example:
        >>> from deepseek_hpf.scheduling.log_normal import LogNormal
        >>> from deepseek_hpf.scheduling.predictive_scale import PredictiveScale
        >>> rule, seen = PredictiveScale(warmup=2), LogNormal()
        >>> for largest in (1.0, 1.0):
        ...     seen = rule.observe(seen, largest, scale=1024.0)
        >>> rule.propose(seen)
        32768.0

    References:
        Kuchaiev et al., "Mixed-Precision Training for NLP and Speech Recognition with OpenSeq2Seq"
        (arXiv:1805.10387), LogMax.
    """

    z: float = 3.09  # one largest gradient in a thousand
    min_scale: float = 1.0
    max_scale: float = 2.0**24
    dtype: str = "float16"
    decay: float = 0.99
    warmup: int = 10

    def observe(self, seen: LogNormal, largest: float, scale: float) -> LogNormal:
        """Takes in a look.

        Args:
            seen: The statistics so far.
            largest: Largest magnitude of the unscaled gradients; inf or NaN after an overflow.
            scale: Loss scale of the steps looked at.

        Returns:
            The statistics with it. An overflow counts as a gradient just beyond the range; zero,
            where everything underflowed or nothing was trained, is left out.
        """
        if not math.isfinite(largest):
            largest = 2.0 * format_of(self.dtype).max / scale
        return seen.after(largest, self.decay)

    def propose(self, seen: LogNormal) -> float | None:
        """The scale to train with.

        Args:
            seen: The statistics.

        Returns:
            The scale, or None before `warmup` looks.
        """
        if seen.count < self.warmup:
            return None
        deviation = self.z * math.sqrt(seen.variance)
        exponent = math.log2(format_of(self.dtype).max) - (seen.mean + deviation) / math.log(2.0)
        # Bounded before the power is taken, which could overflow.
        bounded = max(-149.0, min(127.0, math.floor(exponent)))
        return max(self.min_scale, min(self.max_scale, 2.0**bounded))
