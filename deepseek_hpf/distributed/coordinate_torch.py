"""Has a `HybridPrecisionContext` decide together with the other processes of a training."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist

from deepseek_hpf.config import FLOAT32_MAX
from deepseek_hpf.distributed.coordination import Coordination
from deepseek_hpf.distributed.fingerprint import config_values
from deepseek_hpf.distributed.group_torch import TorchGroup, is_of_lost_rank, lost
from deepseek_hpf.distributed.shards_torch import statistics_of_parts
from deepseek_hpf.torch.agreement import NoAgreement
from deepseek_hpf.torch.context import HybridPrecisionContext
from deepseek_hpf.torch.gradients import Statistics
from deepseek_hpf.torch.loss_scale import LossScale


class GroupAgreement(NoAgreement):
    """Judges the gradients of a step on all ranks as one.

    Args:
        coordination: Of the ranks.
    """

    def __init__(self, coordination: Coordination):
        self._coordination = coordination
        self._steps = 0

    def judge(self, parameters: Sequence[torch.nn.Parameter], loss_scale: LossScale) -> Statistics:
        """Checks and measures the gradients of a step, over all ranks."""
        shards, whole = statistics_of_parts([parameter.grad for parameter in parameters])
        self._steps += 1
        state = {"step": self._steps, "scale": loss_scale.standing()}
        decision, leaders = self._coordination.decide(
            state,
            nonfinite=not (shards.finite and whole.finite),
            sums=(shards.norm**2,),
        )
        if leaders is not None:
            loss_scale.follow(leaders["scale"])
        if decision.skip:
            found = [part.norm for part in (shards, whole) if not part.finite]
            return Statistics(finite=False, norm=found[0] if found else math.nan)
        # What each rank holds whole is the same on all, to the bit: it is not sent around.
        norm = math.hypot(whole.norm, *decision.norms)
        return Statistics(finite=True, norm=min(norm, FLOAT32_MAX))


class CoordinatedContext:
    """A `HybridPrecisionContext` and its coordination, as one `with` block.

    Args:
        context: The context.
        coordination: Of the ranks.
    """

    def __init__(self, context: HybridPrecisionContext, coordination: Coordination):
        self._context = context
        self._coordination = coordination

    @property
    def messages(self) -> int:
        """Messages that this rank has sent for decisions: one for each optimizer step."""
        return self._coordination.messages

    @property
    def message_bytes(self) -> int:
        """Size of such a message in bytes."""
        return self._coordination.message_bytes

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, traceback)
        if isinstance(error, Exception) and is_of_lost_rank(error):
            raise lost(error) from error


def coordinate(
    context: HybridPrecisionContext, group: "dist.ProcessGroup | None" = None
) -> CoordinatedContext:
    """Has a context decide together with the other processes of a training.

    From then on every optimizer step within the context is judged by all ranks at once, by one
    all-reduce of 12 numbers: an inf or NaN on any rank skips the step on all, and the loss scale
    stays the same on all. DDP's reduced gradients carry an inf or NaN by themselves; the shards of
    `fully_shard`, and steps within `no_sync`, do not. Norms are those of the whole gradient.

    All ranks have to step the same optimizers in the same order.

    Args:
        context: The context. It is changed, and may also be entered by itself.
        group: The process group of the model's replicas and shards; None for the default one.

    Returns:
        What to use in `with` in place of the context: it enters the context, and tells of lost
        ranks in a clear sentence.

    Raises:
        ConfigError: There is no process group, or a rank has another configuration, other dtypes
            or another PyTorch than rank 0: on all ranks, naming rank and difference.

    Example:
        A group of one process; `torchrun` starts more, and tells each its rank.

        >>> import torch, torch.distributed as dist
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> from deepseek_hpf.distributed import coordinate
        >>> from deepseek_hpf.torch import HybridPrecisionContext
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Linear(4, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> context = HybridPrecisionContext("fp16")
        >>> with coordinate(context):
        ...     for value in (0.1, float("inf")):
        ...         optimizer.zero_grad()
        ...         loss = model(torch.full((8, 4), value)).float().square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        >>> context.skipped_steps, context.scale
        (1, 16384.0)
        >>> dist.destroy_process_group()

    References:
        - [DistributedDataParallel](https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html)
    """
    description = {
        "config": config_values(context.config),
        "autocast": {kind: str(dtype) for kind, dtype in context.autocast_dtypes.items()},
        "torch": torch.__version__,
    }
    coordination = Coordination(TorchGroup(group), description)
    context.agree_by(GroupAgreement(coordination))
    return CoordinatedContext(context, coordination)
