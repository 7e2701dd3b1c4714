"""One `with` block of one thread: what PyTorch shows of its loop, and what is done about it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode

from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.errors import PrecisionError
from deepseek_hpf.torch import entered
from deepseek_hpf.torch.loss_scale import LossScale
from deepseek_hpf.torch.master_weights import NoMasters
from deepseek_hpf.torch.regions import Regions, uses_float16
from deepseek_hpf.torch.running_statistics import BATCH_NORM, RunningStatistics
from deepseek_hpf.torch.scaled_backward import can_be_scaled, divided_on_arrival, leaves_of
from deepseek_hpf.torch.steps import Arguments, Steps
from deepseek_hpf.torch.storage_regions import StorageRegions
from deepseek_hpf.torch.verdicts import Verdicts

# What `torch.amp.GradScaler` calls before a step.
UNSCALE = torch._amp_foreach_non_finite_check_and_unscale_
GRADIENTS = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)
INTERCEPTED = frozenset((UNSCALE, *GRADIENTS))


class Entry:
    """One `with` block of one thread.

    Args:
        dtypes: Autocast's, by type of device.
        rules: Regions of other dtypes, and of other storage.
        loss_scale: For float16.
        verdicts: Judges optimizer steps.
        masters: Has gradients arrive in float32.
    """

    def __init__(
        self,
        dtypes: "dict[str, torch.dtype]",
        *,
        rules: Sequence[PrecisionRule],
        loss_scale: LossScale,
        verdicts: Verdicts,
        masters: NoMasters,
    ):
        self._masters = masters
        self.dtypes = dtypes
        self._regions = (Regions(rules, self), StorageRegions(rules, self))
        self._float16_somewhere = uses_float16(rules)
        self._loss_scale = loss_scale
        self._verdicts = verdicts
        self.statistics = RunningStatistics()
        self.steps = Steps(verdicts, masters, self.statistics, dtypes)

    def enter(self) -> ExitStack:
        """Begins to act.

        Returns:
            What ends it.
        """
        with ExitStack() as exits:
            exits.enter_context(entered.autocast(self.dtypes))
            exits.enter_context(_Seeing(self))
            for regions in self._regions:
                regions.watch(exits)
            exits.callback(self.steps.abandon)
            entered.push(self)
            exits.callback(entered.remove, self)
            return exits.pop_all()

    @torch.compiler.disable
    def backward(self, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Runs a backward pass, outside of autocast, whose kernels chose their dtypes before."""
        self._verdicts.backward_passes += 1
        if self.steps.stale:
            self.steps.abandon()
        with entered.autocast(dict.fromkeys(self.dtypes, torch.float32)):
            if function is not torch.Tensor.backward:
                return function(*args, **kwargs)
            if not args[0].requires_grad:
                return function(*args, **kwargs)  # PyTorch's own refusal.
            with entered.running(args[0], self):
                return self._tensor_backward(*args, **kwargs)

    def _tensor_backward(
        self,
        loss: torch.Tensor,
        gradient: "torch.Tensor | None" = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        inputs = (inputs,) if isinstance(inputs, torch.Tensor) else inputs
        inputs = None if inputs is None else tuple(inputs)
        options = {"retain_graph": retain_graph, "create_graph": create_graph, "inputs": inputs}
        if not self._scales(loss) or not can_be_scaled(loss, inputs):
            torch.Tensor.backward(loss, gradient, **options)
            return
        leaves = leaves_of(loss) if inputs is None else inputs
        for leaf in leaves:
            self._masters.prepare(leaf)
        if gradient is None and loss.numel() == 1:
            gradient = torch.ones_like(loss)
        factor = min(self._loss_scale.for_backward(), _largest_power_of_two(loss.dtype))
        scaled = None if gradient is None else gradient * factor
        with divided_on_arrival(loss, leaves, factor):
            torch.Tensor.backward(loss, scaled, **options)

    def _scales(self, loss: torch.Tensor) -> bool:
        low = self._float16_somewhere or self.dtypes.get(loss.device.type) == torch.float16
        return self._loss_scale.enabled and low


@torch.compiler.disable
def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Arguments | None:
    entry = entered.innermost()
    return None if entry is None else entry.steps.before(optimizer, (args, kwargs))


@torch.compiler.disable
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    entry = entered.innermost()
    if entry is not None:
        entry.steps.after(optimizer)


# For good: PyTorch walks through the hooks while it calls them, and another thread must not change
# them meanwhile.
register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


class _Seeing(TorchFunctionMode):
    """Sees the calls of this thread to PyTorch's functions."""

    def __init__(self, entry: Entry):
        super().__init__()
        self._entry = entry

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Nearly every call of a loop comes by here: what is not wanted leaves at once.
        if function is BATCH_NORM and not torch.compiler.is_compiling():
            if entered.is_innermost(self._entry):
                self._entry.statistics.keep(args, kwargs or {})
        elif function in INTERCEPTED and entered.is_innermost(self._entry):
            if function is UNSCALE:
                raise PrecisionError(
                    "Received: a gradient scaler of your own within a HybridPrecisionContext, "
                    "which scales the loss itself. Leave the scaler out (`loss.backward()`, "
                    "`optimizer.step()`), or the context."
                )
            return self._entry.backward(function, args, kwargs or {})
        return function(*args, **kwargs) if kwargs else function(*args)


def _largest_power_of_two(dtype: torch.dtype) -> float:
    return 2.0**15 if dtype == torch.float16 else 2.0**127
