"""A backward pass of a scaled loss that leaves true gradients.

The pass starts from the scale instead of 1, and each gradient is divided on arrival, by a hook on
its leaf that lives as long as the pass and answers to this pass only. So nothing that a loop sees
in a `.grad` is ever scaled: it can be clipped, accumulated, compared or used outside of the
context, and no gradient that came by another way is ever divided. What tensors in between hold
(`retain_grad`, their hooks) is scaled.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from deepseek_hpf.errors import PrecisionError

AccumulateGrad = torch._C._functions.AccumulateGrad
# Its recomputed part runs a backward pass of its own, which the graph does not show.
REENTRANT_CHECKPOINT = "CheckpointFunctionBackward"


@contextmanager
def divided_on_arrival(
    loss: torch.Tensor, leaves: Iterable[torch.Tensor], factor: float
) -> Iterator[None]:
    """Divides by `factor` what a backward pass from `loss` delivers within the context.

    Args:
        loss: Where the pass starts.
        leaves: Where it arrives.
        factor: What it starts from, instead of 1.
    """
    passes: list[int] = []
    inverse = 1.0 / factor

    def begins(gradient: torch.Tensor) -> None:
        passes.append(torch._C._current_graph_task_id())

    def arrives(gradient: torch.Tensor) -> torch.Tensor | None:
        # Another thread's pass may reach the same leaf at the same time.
        return gradient * inverse if torch._C._current_graph_task_id() in passes else None

    with ExitStack() as hooks:
        # A leaf's own hooks run in the order of this list: the one that divides comes first.
        for leaf in leaves:
            _hook_first(hooks, leaf, arrives)
        _hook_first(hooks, loss, begins)
        yield


def can_be_scaled(loss: torch.Tensor, inputs: "Iterable[Any] | None") -> bool:
    """Whether all that a backward pass delivers arrives at leaves, where it can be divided."""
    if not loss.requires_grad or not loss.is_floating_point():
        return False
    return inputs is None or all(
        isinstance(tensor, torch.Tensor) and tensor.is_leaf and tensor.requires_grad
        for tensor in inputs
    )


def leaves_of(loss: torch.Tensor) -> list[torch.Tensor]:
    """Returns the leaves that a backward pass from `loss` reaches, in no particular order.

    Raises:
        PrecisionError: A checkpoint hides leaves from the graph.
    """
    if loss.grad_fn is None:
        return [loss]
    found = []
    seen = {loss.grad_fn}
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if type(node) is AccumulateGrad:
            found.append(node.variable)
        elif type(node).__name__ == REENTRANT_CHECKPOINT:
            raise PrecisionError(
                "A reentrant checkpoint runs a backward pass of its own, whose gradients would "
                "stay scaled. Use `torch.utils.checkpoint.checkpoint(…, use_reentrant=False)`, or "
                'precision_mode="bf16", which needs no loss scaling.'
            )
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return found


def _hook_first(
    hooks: ExitStack, tensor: torch.Tensor, hook: Callable[[torch.Tensor], Any]
) -> None:
    handle = tensor.register_hook(hook)
    hooks.callback(handle.remove)
    others = {name: other for name, other in tensor._backward_hooks.items() if other is not hook}
    if others:
        # They run in the order in which they were put into the dictionary.
        tensor._backward_hooks.clear()
        tensor._backward_hooks.update({handle.id: hook, **others})
