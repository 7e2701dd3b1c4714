"""The ranks of a PyTorch process group, and what is said where one of them is lost."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from deepseek_hpf.distributed.group import LEADER
from deepseek_hpf.errors import ConfigError, PrecisionError, told

# How gloo says that the other end is gone or silent; it has no class of exception.
LOST = re.compile(r"gloo/|Connection (closed|reset) by peer|Timed out waiting|Broken pipe")


class TorchGroup:
    """The ranks of a process group.

    Args:
        group: The process group; None for the default one.

    Raises:
        ConfigError: `torch.distributed` is not initialized.
    """

    def __init__(self, group: "dist.ProcessGroup | None" = None):
        if not dist.is_available() or not dist.is_initialized():
            raise ConfigError(
                "Expected a process group. Received: none. Start the script with `torchrun "
                '--nproc-per-node 2 …`, and call `torch.distributed.init_process_group("gloo")` '
                '("nccl" on GPUs) first.'
            )
        self.process_group = group if group is not None else dist.group.WORLD
        self.rank = dist.get_rank(self.process_group)
        self.size = dist.get_world_size(self.process_group)
        self._device = _device_of(self.process_group)
        self._leader = dist.get_global_rank(self.process_group, LEADER)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds numbers over the ranks, in float64; all ranks get the same bits."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        with lost_ranks_told():
            dist.all_reduce(total, group=self.process_group)
            return [float(number) for number in total.tolist()]

    def broadcast(self, value: Any) -> Any:
        """Returns the leader's value, a JSON value."""
        payload = _encoded(value, self._device)
        length = torch.tensor([payload.numel()], device=self._device)
        with lost_ranks_told():
            dist.broadcast(length, self._leader, group=self.process_group)
            if self.rank != LEADER:
                payload = payload.new_empty(int(length))
            dist.broadcast(payload, self._leader, group=self.process_group)
            return _decoded(payload)

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's value, a JSON value, in the order of the ranks."""
        payload = _encoded(value, self._device)
        length = torch.tensor([payload.numel()], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        with lost_ranks_told():
            dist.all_gather(lengths, length, group=self.process_group)
            # Gathered tensors are of one shape.
            padded = payload.new_zeros(max(map(int, lengths)))
            padded[: payload.numel()] = payload
            gathered = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(gathered, padded, group=self.process_group)
            each = zip(gathered, lengths, strict=True)
            return [_decoded(padded[: int(length)]) for padded, length in each]


@contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Says in a clear sentence that another rank is gone or silent, where PyTorch says it.

    Raises:
        PrecisionError: A rank has ended or did not answer within the group's timeout.
    """
    try:
        yield
    except RuntimeError as error:
        if is_of_lost_rank(error):
            raise lost(error) from error
        raise


def is_of_lost_rank(error: BaseException | None) -> bool:
    """Whether an error of PyTorch's says that another rank is gone or silent."""
    if not isinstance(error, RuntimeError) or isinstance(error, PrecisionError):
        return False
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


def lost(error: Exception) -> PrecisionError:
    """The clear sentence for an error of a lost rank."""
    return PrecisionError(
        "Another process of the training has ended, or did not answer within the timeout of the "
        "process group; its own output says why. No step was done with a part of the gradients. "
        f"Start all processes again, from the last checkpoint. Received: {told(error)}"
    )


def _device_of(group: Any) -> torch.device:
    if "gloo" in dist.get_backend(group) or not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.device(torch.accelerator.current_accelerator().type)


def _encoded(value: Any, device: torch.device) -> torch.Tensor:
    # JSON, not pickle: what another process sends is read, never run.
    text = json.dumps(value).encode("ascii")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)


def _decoded(payload: torch.Tensor) -> Any:
    return json.loads(bytes(payload.cpu().tolist()))
