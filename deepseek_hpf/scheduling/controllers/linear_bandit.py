"""A linear bandit: Bayesian regression of the reward, decided by Thompson sampling."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class LinearBandit:
    """Learns a reward that is linear in what is known of an action.

    With features `x` and rewards `r`, `A = I + sum x xᵀ` and `b = sum r x`, the weights are
    believed to be normal with mean `A⁻¹ b` and covariance `noise² A⁻¹`.

    Args:
        features: Number of features.
        noise: Standard deviation of a reward.
        seed: Seed of the draws. The n-th draw of a seed is always the same: the state holds
            nothing of a generator but how often it was drawn from.

    Example:
        >>> from deepseek_hpf.scheduling.controllers.linear_bandit import LinearBandit
        >>> bandit = LinearBandit(2, noise=0.0, seed=0)
        >>> for _ in range(99):
        ...     bandit.learn([1.0, 0.0], 0.5)
        >>> [round(float(score), 3) for score in bandit.scores([[1.0, 0.0], [0.0, 1.0]])]
        [0.495, 0.0]

    References:
        Agrawal & Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs"
        (arXiv:1209.3352).
    """

    def __init__(self, features: int, *, noise: float, seed: int):
        self._noise = noise
        self._seed = seed
        self._precision = np.eye(features)
        self._moment = np.zeros(features)
        self._draws = 0

    def learn(self, features: Sequence[float], reward: float) -> None:
        """Takes in what an action with these features brought."""
        x = np.asarray(features, "float64")
        self._precision += np.outer(x, x)
        self._moment += reward * x

    def scores(self, actions: Sequence[Sequence[float]]) -> list[float]:
        """Draws weights from what is believed of them, and says what each action would bring.

        Args:
            actions: The features of each.

        Returns:
            A reward for each.
        """
        generator = np.random.default_rng([self._seed, self._draws])
        self._draws += 1
        normal = generator.standard_normal(len(self._moment))
        # A = L Lᵀ: L⁻ᵀ n has the covariance A⁻¹.
        lower = np.linalg.cholesky(self._precision)
        deviation = np.linalg.solve(lower.T, normal)
        weights = np.linalg.solve(self._precision, self._moment) + self._noise * deviation
        return [float(score) for score in np.asarray(actions, "float64") @ weights]

    def get_state(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "precision": self._precision.tolist(),
            "moment": self._moment.tolist(),
            "draws": self._draws,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        precision, moment = (np.array(state[k], "float64") for k in ("precision", "moment"))
        if precision.shape != self._precision.shape or moment.shape != self._moment.shape:
            raise ValueError("another number of features")
        self._precision, self._moment, self._draws = precision, moment, int(state["draws"])
