"""Who judges the gradients of a step: this process alone, or all that train the model."""

from collections.abc import Sequence

import torch

from deepseek_hpf.torch.gradients import Statistics, gradient_statistics, values_of
from deepseek_hpf.torch.loss_scale import LossScale


class NoAgreement:
    """This process alone; base of what asks the others (`deepseek_hpf.distributed`)."""

    def judge(self, parameters: Sequence[torch.nn.Parameter], loss_scale: LossScale) -> Statistics:
        """Checks and measures the gradients of a step.

        Args:
            parameters: Each has a gradient; sparse ones are coalesced.
            loss_scale: What the ranks agree on, and correct where they do not.

        Returns:
            `Statistics`.
        """
        return gradient_statistics([values_of(p.grad) for p in parameters])
