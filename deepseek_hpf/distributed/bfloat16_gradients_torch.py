"""Gradients of DDP sent in bfloat16, without losing what the rounding takes away.

Each rank rounds its share of the mean gradient to bfloat16 and keeps what was rounded off, to add
it next time. An all-to-all brings each rank one slice of all shares, which it adds in float32, in
the order of the ranks; an all-gather, in bfloat16 again, brings the sums to all. What that second
rounding takes away is kept by the rank that rounded. So over the steps everything arrives:

    sum of gradients = sum of what was applied + what the ranks keep.

An all-reduce in bfloat16 would send as many bytes, and round at each of its additions, for good.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from deepseek_hpf.errors import ConfigError

BFLOAT16_BYTES = 2
FLOAT32_BYTES = 4
# PyTorch 2.13 has renamed it.
GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class CountsSkips(Protocol):
    """A `HybridPrecisionContext`, as far as it matters here."""

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps skipped so far."""


class BFloat16Gradients:
    """What the communication of a model's gradients keeps from step to step.

    Args:
        model: The model.
        context: Its precision context. After a skipped step nothing is kept of its gradients.

    Attributes:
        bytes_per_step: Bytes that this rank has sent in the last backward pass.
        float32_bytes_per_step: Bytes that a ring all-reduce in float32 would have sent.
    """

    def __init__(self, model: DistributedDataParallel, context: CountsSkips):
        self.bytes_per_step = 0
        self.float32_bytes_per_step = 0
        self._group = model.process_group
        self._size = dist.get_world_size(self._group)
        self._rank = dist.get_rank(self._group)
        self._context = context
        self._skips_seen = context.skipped_steps
        # By name, for the checkpoint; DDP arranges its buckets anew after the first step.
        self._names = {parameter: name for name, parameter in model.module.named_parameters()}
        self._kept: dict[str, torch.Tensor] = {}

    def kept_norm(self) -> float:
        """Returns the L2 norm of what this rank keeps: all that rounding has not delivered yet."""
        kept = [tensor.float() for tensor in self._kept.values()]
        return float(torch.nn.utils.get_total_norm(kept)) if kept else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Returns what this rank keeps, by name of the parameter; each rank saves its own."""
        self._forget_skipped()
        return {"size": self._size, "rank": self._rank, "kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` of this rank returned.

        Args:
            state: The state.

        Raises:
            ConfigError: It is of another rank, or of another number of ranks.
        """
        place = (state["rank"], state["size"])
        if place != (self._rank, self._size):
            raise ConfigError(
                f"Expected the state of rank {self._rank} of {self._size}. Received: that of rank "
                f"{place[0]} of {place[1]}. Load on each rank what it saved, or leave it out: no "
                "more than one step's rounding is lost."
            )
        self._kept = {name: tensor.clone() for name, tensor in state["kept"].items()}
        self._skips_seen = self._context.skipped_steps

    def reduce(self, bucket: dist.GradBucket) -> torch.Tensor:
        """Makes the mean over the ranks of a bucket of gradients, in place.

        Args:
            bucket: DDP's; gradients of other dtypes than float32 are sent as they are.

        Returns:
            The bucket's buffer.
        """
        if bucket.index() == 0:
            self._forget_skipped()
            self.bytes_per_step = self.float32_bytes_per_step = 0
        mean = bucket.buffer().div_(self._size)
        if mean.dtype != torch.float32:
            dist.all_reduce(mean, group=self._group)
            self._count(mean.numel(), mean.element_size(), mean.numel())
            return mean
        names = [self._names[parameter] for parameter in bucket.parameters()]
        gradients = list(bucket.gradients())
        for name, gradient in zip(names, gradients, strict=True):
            if name in self._kept:
                gradient.add_(self._kept[name])
        for name, rest in zip(names, self._exchange(gradients), strict=True):
            # An inf or NaN is sent, so that all ranks skip the step, and never kept.
            self._kept[name] = torch.where(rest.isfinite(), rest, 0.0)
        return mean

    def _exchange(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Puts the sums over the ranks in the place of this rank's shares.

        Each parameter is cut into as many slices as there are ranks, so that who adds what does not
        depend on how DDP arranges its buckets: it does so anew after the first step, and a resumed
        training would get other bits.

        Returns:
            What rounding has taken away on this rank.
        """
        slices = [_sliced(share, self._size) for share in shares]
        columns = [part.shape[1] for part in slices]
        wide = torch.cat(slices, dim=1)
        sent = wide.bfloat16()
        rest = wide.sub_(sent)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self._group)
        total = received.float().sum(0)
        rounded = total.bfloat16()
        rest[self._rank] += total.sub_(rounded)
        sums = sent  # Its memory is free again.
        GATHER(sums.view(-1), rounded, group=self._group)
        for share, part in zip(shares, sums.split(columns, dim=1), strict=True):
            share.copy_(_joined(part, share))
        self._count(wide.numel(), BFLOAT16_BYTES, sum(share.numel() for share in shares))
        each = zip(shares, rest.split(columns, dim=1), strict=True)
        return [_joined(part, share) for share, part in each]

    def _forget_skipped(self) -> None:
        """What was rounded off of a step that was thrown away may be of any size."""
        if self._context.skipped_steps != self._skips_seen:
            self._skips_seen = self._context.skipped_steps
            self._kept.clear()

    def _count(self, sent: int, size: int, numbers: int) -> None:
        self.bytes_per_step += ring_bytes(sent, size, self._size)
        self.float32_bytes_per_step += ring_bytes(numbers, FLOAT32_BYTES, self._size)


def _sliced(share: torch.Tensor, ranks: int) -> torch.Tensor:
    """A row for each rank, filled up with zeros."""
    length = -(-share.numel() // ranks)
    flat = share.flatten()
    return torch.nn.functional.pad(flat, (0, ranks * length - flat.numel())).view(ranks, length)


def _joined(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The reverse, in another tensor's shape."""
    return rows.reshape(-1)[: like.numel()].view_as(like)


def ring_bytes(numbers: int, size: int, ranks: int) -> int:
    """Returns the bytes that each rank sends so that all have the sums.

    Args:
        numbers: Length of the vector.
        size: Bytes of a number.
        ranks: How many ranks there are.

    Returns:
        Bytes of a reduction by slices and an all-gather of the slices, in a ring or direct.

    Example:
        >>> from deepseek_hpf.distributed.bfloat16_gradients_torch import ring_bytes
        >>> ring_bytes(1000, 4, ranks=2), ring_bytes(1000, 2, ranks=2)
        (4000, 2000)
    """
    return 2 * (ranks - 1) * -(-numbers // ranks) * size


def send_gradients_in_bfloat16(
    model: DistributedDataParallel, context: CountsSkips
) -> BFloat16Gradients:
    """Has DDP send its gradients in bfloat16, with error feedback: half the bytes of float32.

    What the rounding takes away from one step's gradients is added to the next one's, so that it
    delays a part of 1/256 of them by a step and loses nothing. It costs 4 bytes for each parameter
    on each rank. The ranks' weights stay equal to the bit. Sums are made in float32.

    Args:
        model: The model in DDP, before its first step; it can have one communication hook.
        context: Its precision context.

    Returns:
        What is kept, to be saved with the checkpoint, and the bytes that were sent.

    Raises:
        ConfigError: The model is not in DDP. `fully_shard` has its own
            `MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)`, without feedback.

    Example:
        >>> import torch, torch.distributed as dist
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> from deepseek_hpf.distributed import send_gradients_in_bfloat16
        >>> from deepseek_hpf.torch import HybridPrecisionContext
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
        >>> sent = send_gradients_in_bfloat16(model, HybridPrecisionContext("fp32"))
        >>> model(torch.tensor([[1.001953125]])).sum().backward()  # bfloat16 has 1.0 and 1.0078125
        >>> model.module.weight.grad.item(), sent.kept_norm()
        (1.0, 0.001953125)
        >>> dist.destroy_process_group()

    References:
        - [1-bit SGD](https://www.microsoft.com/en-us/research/publication/1-bit-stochastic-gradient-descent-and-application-to-data-parallel-distributed-training-of-speech-dnns/),
          for error feedback
        - [DDP communication hooks](https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html)
    """
    if not isinstance(model, DistributedDataParallel):
        raise ConfigError(
            "Expected a model in DistributedDataParallel; a model under `fully_shard` takes "
            "`MixedPrecisionPolicy(reduce_dtype=torch.bfloat16)`. "
            f"Received: model={type(model).__name__}"
        )
    state = BFloat16Gradients(model, context)
    model.register_comm_hook(state, _hook)
    return state


def _hook(state: BFloat16Gradients, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(state.reduce(bucket))
    return future
