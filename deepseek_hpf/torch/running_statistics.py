"""Running statistics of batch normalization, which a skipped step would leave not finite.

They change in the forward pass, before anything is known of the gradients, and an inf or a NaN in
them never goes away. What they were at the first call after a step is kept until the next one.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

BATCH_NORM = torch.nn.functional.batch_norm
PARAMETERS = tuple(inspect.signature(BATCH_NORM).parameters)


class RunningStatistics:
    """The statistics that one thread's forward passes change between two optimizer steps."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stepped = False

    def keep(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Takes note of what a call of `BATCH_NORM` is about to change.

        Args:
            args: Positional arguments of the call.
            kwargs: Its keyword arguments.
        """
        if self._stepped:
            self._keep_all()
            self._stepped = False
        given = {**dict(zip(PARAMETERS, args, strict=False)), **kwargs}
        if not given.get("training", False):
            return
        for tensor in (given["running_mean"], given["running_var"]):
            if tensor is not None and id(tensor) not in self._before:
                self._before[id(tensor)] = tensor, tensor.detach().clone()

    def _keep_all(self) -> None:
        """All that were ever seen, at once: one by one would cost more than the layers."""
        if self._before:
            tensors, copies = zip(*self._before.values(), strict=True)
            torch._foreach_copy_(copies, tensors)

    def stepped(self, *, skipped: bool) -> None:
        """An optimizer step has ended; after a skipped one, what is not finite is set back."""
        self._stepped = True
        if skipped:
            _set_back(list(self._before.values()))


def _set_back(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.no_grad():
        for tensor, before in pairs:
            if not bool(torch.isfinite(tensor).all()):
                tensor.copy_(before)
