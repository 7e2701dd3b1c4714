"""Float32 masters of a model that was converted to low precision.

Gradients arrive in float32 (`Tensor.grad_dtype`): in float16 from the first scaled backward pass
on, in bfloat16 from the first step on. During an optimizer step each low-precision parameter *is*
its master, so that weights and slots are float32; afterwards it is the master's rounded image
again. As on the Keras side, what is assigned to a parameter from outside wins over its master,
element by element.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from deepseek_hpf.errors import ConfigError, PrecisionError
from deepseek_hpf.torch.per_optimizer import PerOptimizer

LOW = (torch.float16, torch.bfloat16)


class NoMasters:
    """Parameters are float32; base of `MasterWeights`."""

    def prepare(self, leaf: torch.Tensor) -> None:
        """A backward pass is about to reach a leaf.

        Raises:
            PrecisionError: Its gradient, true again, would underflow in its own dtype.
        """
        if leaf.dtype == torch.float16:
            raise _refusal(leaf)

    def expect(self, parameter: torch.Tensor) -> None:
        """An optimizer is about to update a parameter.

        Raises:
            PrecisionError: Small updates would be lost in its own dtype.
        """
        if parameter.dtype in LOW:
            raise _refusal(parameter)

    @contextmanager
    def in_place(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Puts the masters in the place of an optimizer's parameters."""
        yield

    def remember(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Returns what sets the masters of an optimizer back to what they are now."""
        return lambda: None

    def state_dict(self) -> list[list[Any]]:
        """Returns the masters of each optimizer, in the order in which those first stepped."""
        return []

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Sets the masters; they go to optimizers in the order in which those first step."""


class MasterWeights(NoMasters):
    """Parameters may be float16 or bfloat16; each has a float32 master.

    Raises:
        ConfigError: This PyTorch keeps gradients in the parameter's dtype only.
    """

    def __init__(self) -> None:
        if not hasattr(torch.zeros(()), "grad_dtype"):
            raise ConfigError(
                "`master_weights` needs a PyTorch that has `Tensor.grad_dtype`, 2.10 or later. "
                f"Received: PyTorch {torch.__version__}"
            )
        self._masters: PerOptimizer[list[Any]] = PerOptimizer(list)

    def prepare(self, leaf: torch.Tensor) -> None:
        """Has the gradient of a leaf of low precision arrive in float32."""
        if leaf.dtype in LOW and leaf.grad_dtype != torch.float32:
            gradient, leaf.grad = leaf.grad, None
            leaf.grad_dtype = torch.float32
            leaf.grad = None if gradient is None else gradient.float()

    def expect(self, parameter: torch.Tensor) -> None:
        """Low precision is as it should be; a gradient that came by another way is widened."""
        self.prepare(parameter)

    @contextmanager
    def in_place(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Puts the masters in the place of an optimizer's parameters."""
        weights = [(p, p.data) for group in optimizer.param_groups for p in group["params"]]
        masters = self._refreshed(optimizer, [weight for _, weight in weights])
        try:
            for (parameter, _), master in zip(weights, masters, strict=True):
                if master is not None:
                    parameter.data = master
                    _widen_slots(optimizer.state.get(parameter, {}))
            yield
        finally:
            for (parameter, weight), master in zip(weights, masters, strict=True):
                if master is not None:
                    parameter.data = weight.copy_(master)

    def remember(self, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        """Returns what sets the masters of an optimizer back to what they are now."""
        masters = self._masters.of(optimizer)
        remembered = [_copied(master) for master in masters]

        def restore() -> None:
            masters[:] = remembered

        return restore

    def state_dict(self) -> list[list[Any]]:
        """Returns the masters of each optimizer, in the order in which those first stepped."""
        return [list(masters) for masters in self._masters.values()]

    def load_state_dict(self, state: Sequence[Sequence[Any]]) -> None:
        """Sets the masters; they go to optimizers in the order in which those first step."""
        self._masters.load([_copied(master) for master in masters] for masters in state)

    def _refreshed(
        self, optimizer: torch.optim.Optimizer, weights: Sequence[torch.Tensor]
    ) -> list[Any]:
        """The masters, one for each weight of low precision; None for the others."""
        masters = self._masters.of(optimizer)
        masters.extend([None] * (len(weights) - len(masters)))  # A group was added.
        masters[:] = [_refreshed(*pair) for pair in zip(masters, weights, strict=True)]
        return masters


def masters_for(argument: bool | str) -> NoMasters:
    """Returns the masters that a configuration asks for.

    Args:
        argument: Its `master_weights`.

    Raises:
        ConfigError: A form that only Keras's optimizers have.
    """
    if isinstance(argument, str):
        raise ConfigError(
            "In plain PyTorch `master_weights` is true or false; the other forms are of "
            "`deepseek_hpf.LossScaleOptimizer`, for Keras models. Set it to true for float32 "
            f"masters. Received: master_weights={argument!r}"
        )
    return MasterWeights() if argument else NoMasters()


def _refreshed(master: "torch.Tensor | None", weight: torch.Tensor) -> "torch.Tensor | None":
    if weight.dtype not in LOW:
        return None
    if master is None or master.shape != weight.shape:
        return weight.float()
    master = master.to(weight.device)
    unchanged = master.to(weight.dtype).view(torch.int16) == weight.view(torch.int16)
    return torch.where(unchanged, master, weight.float())


def _widen_slots(state: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict` casts slots to the parameter's dtype."""
    for name, slot in state.items():
        if isinstance(slot, torch.Tensor) and slot.dtype in LOW:
            state[name] = slot.float()


def _copied(master: Any) -> Any:
    return master.clone() if isinstance(master, torch.Tensor) else None


def _refusal(parameter: torch.Tensor) -> PrecisionError:
    name = str(parameter.dtype).removeprefix("torch.")
    return PrecisionError(
        "Expected parameters in float32, of which autocast makes copies in low precision. "
        f"Received: a {name} parameter of shape {tuple(parameter.shape)}, to which small gradients "
        'and updates would be lost. Leave the model in float32, or set "master_weights" in the '
        "configuration."
    )
