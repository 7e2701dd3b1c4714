"""Running log-normal statistics of a positive figure, such as a gradient norm."""

import math
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class LogNormal:
    """Mean and variance of the logarithm of the figures seen so far.

    All figures weigh the same up to the `1 / (1 - decay)`-th; from then on older ones fade:

        w = max(1 / n, 1 - decay);  d = x - mean
        mean += w * d;  variance = (1 - w) * (variance + w * d * d)

    Args:
        mean: Mean of the natural logarithm.
        variance: Its variance.
        count: Figures seen.

    Example:
        >>> from deepseek_hpf.scheduling.log_normal import LogNormal
        >>> seen = LogNormal()
        >>> for figure in (1.0, 4.0, 2.0):
        ...     seen = seen.after(figure)
        >>> round(seen.quantile(0.0), 6)  # the median: the geometric mean
        2.0
    """

    mean: float = 0.0
    variance: float = 0.0
    count: int = 0

    def after(self, figure: float, decay: float = 0.99, margin: float = math.inf) -> Self:
        """Takes in one more figure.

        Args:
            figure: The figure; one that is not positive and finite is left out.
            decay: Factor on the weight of older figures, below 1.
            margin: How far, in the logarithm, one figure may lie from the mean; beyond it, it
                counts as if it lay there, so that an outlier does not hide the next one.

        Returns:
            The statistics with it.
        """
        if not (figure > 0.0 and math.isfinite(figure)):
            return self
        count = self.count + 1
        weight = max(1.0 / count, 1.0 - decay)
        deviation = math.log(figure) - self.mean
        if self.count:
            deviation = max(-margin, min(margin, deviation))
        shift = weight * deviation
        variance = (1.0 - weight) * (self.variance + shift * deviation)
        return type(self)(self.mean + shift, variance, count)

    def deviation(self, figure: float) -> float:
        """How far the logarithm of a figure lies above the mean; 0 for one that is not positive."""
        return math.log(figure) - self.mean if figure > 0.0 else 0.0

    def quantile(self, z: float) -> float:
        """The figure whose logarithm lies `z` standard deviations above the mean."""
        return math.exp(min(self.mean + z * math.sqrt(self.variance), 709.0))
