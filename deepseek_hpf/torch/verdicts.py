"""What becomes of an optimizer step: done, clipped or skipped; and what was counted."""

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch

from deepseek_hpf.config import Clipping
from deepseek_hpf.torch.agreement import NoAgreement
from deepseek_hpf.torch.clipping import NoClipping, create_clipping
from deepseek_hpf.torch.gradients import merge_rows
from deepseek_hpf.torch.loss_scale import LossScale
from deepseek_hpf.torch.master_weights import NoMasters
from deepseek_hpf.torch.per_optimizer import PerOptimizer

SKIPS_WARNED_OF = 10  # in a row
COUNTERS = ("skipped_steps", "clipped_steps", "consecutive_skips")

logger = logging.getLogger(__name__)


class Verdicts:
    """Judges the gradients of all steps of a context, of whatever thread.

    Args:
        loss_scale: Hears of each step.
        clipping: The section of the configuration; each optimizer has statistics of its own.
        masters: Says which parameters may be of low precision.
    """

    def __init__(self, loss_scale: LossScale, clipping: Clipping | None, masters: NoMasters):
        self._lock = threading.RLock()
        self._loss_scale = loss_scale
        self._config = clipping
        self._masters = masters
        self._rules = PerOptimizer(lambda: create_clipping(clipping))
        self.agreement = NoAgreement()
        self._met: WeakSet[torch.optim.Optimizer] = WeakSet()
        self.backward_passes = 0
        self.skipped_steps = 0
        self.clipped_steps = 0
        self.consecutive_skips = 0
        self.gradient_norm = 0.0

    def admit(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
    ) -> bool:
        """Decides about gradients, and clips them if they are finite.

        Args:
            optimizer: Whose step it is.
            parameters: Those of its parameters that have a gradient.

        Returns:
            Whether the step may be done with them.
        """
        for parameter in parameters:
            self._masters.expect(parameter)
            merge_rows(parameter)
        with self._lock:
            self._expect_gradients(optimizer, parameters)
            statistics = self.agreement.judge(parameters, self._loss_scale)
            self.gradient_norm = statistics.norm
            if statistics.finite:
                clipped = self._rules.of(optimizer).clip(parameters, statistics.norm)
                self.clipped_steps += clipped
            return statistics.finite

    def count(self, *, skipped: bool) -> None:
        """Counts a step that has ended, however often it evaluated its closure."""
        with self._lock:
            self._loss_scale.stepped(finite=not skipped)
            self.consecutive_skips = self.consecutive_skips + 1 if skipped else 0
            if skipped:
                self._tell_of_skip()

    def state_dict(self) -> dict[str, Any]:
        """Returns the counters and the statistics of clipping."""
        with self._lock:
            states = [dict(rule.state) for rule in self._rules.values()]
            return {**{name: getattr(self, name) for name in COUNTERS}, "clipping": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Sets them; what is missing starts anew.

        Statistics go to the optimizers in the order in which those first step.
        """
        with self._lock:
            for name in COUNTERS:
                setattr(self, name, int(state.get(name, 0)))
            self._rules.load(self._with_statistics(saved) for saved in state.get("clipping", ()))

    def _with_statistics(self, saved: Mapping[str, float]) -> NoClipping:
        rule = create_clipping(self._config)
        if rule.state.keys() == saved.keys():
            rule.state = dict(saved)
        return rule

    def _expect_gradients(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]
    ) -> None:
        """Warns once of an optimizer that no backward pass serves."""
        if not parameters and self.backward_passes and optimizer not in self._met:
            warnings.warn(
                f"None of the parameters of {type(optimizer).__name__} has a gradient, although a "
                "backward pass ran. If the optimizer was created before the model was moved or "
                "converted, it holds the old parameters: create it afterwards.",
                stacklevel=2,
            )
        self._met.add(optimizer)

    def _tell_of_skip(self) -> None:
        self.skipped_steps += 1
        logger.info("Step skipped: a gradient is not finite (norm %s).", self.gradient_norm)
        if self.consecutive_skips == SKIPS_WARNED_OF:
            warnings.warn(
                f"{SKIPS_WARNED_OF} optimizer steps in a row were skipped, because a gradient was "
                "not finite. Nothing is learned; look at the data, the learning rate and the loss.",
                stacklevel=2,
            )
