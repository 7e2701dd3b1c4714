"""The loss scale of a loop: moved once a round, saved as `torch.amp.GradScaler` saves its own."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from deepseek_hpf.config import LossScaleConfig
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.optimizers import scale_rule
from deepseek_hpf.optimizers.scale_rule import ScaleRules, ScaleState


class LossScale:
    """The scale, and what it waits for.

    A round is the scaled backward passes up to the next optimizer step, and all steps up to the
    next backward pass. It counts once, however many losses and optimizers it has: as an overflow if
    one of its steps was skipped, else as finite.

    Args:
        config: How the scale moves.
    """

    def __init__(self, config: LossScaleConfig):
        self._lock = threading.RLock()
        self._rules = ScaleRules.from_config(config)
        self._enabled = config.initial_scale is not None
        first = config.initial_scale if config.initial_scale is not None else 1.0
        self._state = ScaleState(scale=first, good_steps=0, overflows=0)
        self._scaled = False
        self._finite: bool | None = None

    @property
    def enabled(self) -> bool:
        """Whether float16 losses are scaled at all."""
        return self._enabled

    @property
    def scale(self) -> float:
        """What the next loss is multiplied by."""
        with self._lock:
            self._close_round()
            return float(self._state.scale)

    @property
    def on_floor(self) -> bool:
        """Whether the scale cannot become smaller."""
        return self.scale <= self._rules.min_scale

    def for_backward(self) -> float:
        """Returns the scale for a backward pass that begins now."""
        with self._lock:
            scale = self.scale
            self._scaled = True
            return scale

    def stepped(self, *, finite: bool) -> None:
        """Takes note of an optimizer step, done or skipped."""
        with self._lock:
            if self._scaled:
                self._finite = finite and self._finite is not False

    def _close_round(self) -> None:
        if self._finite is None:
            return
        after = scale_rule.after_finite if self._finite else scale_rule.after_overflow
        scale, good_steps, overflows = after(np, self._state, self._rules)
        self._state = ScaleState(float(scale), int(good_steps), int(overflows))
        self._scaled, self._finite = False, None

    def standing(self) -> dict[str, float]:
        """Returns scale and counters as of the last round that was closed, and closes none."""
        with self._lock:
            return dict(self._state._asdict())

    def follow(self, standing: Mapping[str, float]) -> None:
        """Takes over scale and counters from what `standing` returned on another rank."""
        with self._lock:
            scale, good_steps, overflows = (standing[name] for name in ScaleState._fields)
            self._state = ScaleState(float(scale), int(good_steps), int(overflows))

    def state_dict(self) -> dict[str, Any]:
        """Returns what `torch.amp.GradScaler` would, and the overflows in a row."""
        with self._lock:
            return {
                "scale": self.scale,
                "growth_factor": self._rules.growth_factor,
                "backoff_factor": self._rules.backoff_factor,
                "growth_interval": self._rules.growth_steps,
                "_growth_tracker": self._state.good_steps,
                "overflows": self._state.overflows,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets scale, counters and constants from `state_dict`, or from a `GradScaler`'s.

        Raises:
            ConfigError: A key is missing, or a value out of range; nothing is changed then.
        """
        keys = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
        missing = [key for key in keys if key not in state]
        if missing:
            raise ConfigError(
                "Expected the state of a HybridPrecisionContext or of an enabled "
                f"torch.amp.GradScaler. Received: no {missing[0]!r} among {sorted(state)}"
            )
        constants = LossScaleConfig(
            initial_scale=None,
            growth_factor=state["growth_factor"],
            backoff_factor=state["backoff_factor"],
            growth_steps=state["growth_interval"],
        )
        with self._lock:
            self._rules = replace(
                self._rules,
                growth_factor=constants.growth_factor,
                backoff_factor=constants.backoff_factor,
                growth_steps=constants.growth_steps,
            )
            scale = float(scale_rule.bounded(np, float(state["scale"]), self._rules))
            counts = int(state["_growth_tracker"]), int(state.get("overflows", 0))
            self._state = ScaleState(scale, *counts)
            self._scaled, self._finite = False, None
