"""Which context of this thread is the innermost: it alone acts."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class _Entered(threading.local):
    def __init__(self) -> None:
        self.stack: list[Any] = []


_entered = _Entered()
_passes: dict[int, Any] = {}  # Autograd's number of a backward pass to the entry that runs it.


def push(entry: Any) -> None:
    """Makes an entry the innermost of this thread."""
    _entered.stack.append(entry)


def remove(entry: Any) -> None:
    """Takes an entry out again."""
    if entry in _entered.stack:  # Not in a forked process.
        _entered.stack.remove(entry)


def innermost() -> Any:
    """Returns the innermost entry of this thread, or of the pass that runs here; None outside."""
    if _entered.stack:
        return _entered.stack[-1]
    return _passes.get(torch._C._current_graph_task_id()) if _passes else None


def is_innermost(entry: Any) -> bool:
    """Whether an entry is the innermost one."""
    return innermost() is entry


@contextmanager
def running(loss: torch.Tensor, entry: Any) -> Iterator[None]:
    """Has an entry act in whatever threads autograd runs a pass from `loss`, as on accelerators."""
    numbers: list[int] = []

    def begins(gradient: torch.Tensor) -> None:
        numbers.append(torch._C._current_graph_task_id())
        _passes[numbers[-1]] = entry

    handle = loss.register_hook(begins)
    try:
        yield
    finally:
        handle.remove()
        for number in numbers:
            _passes.pop(number, None)


def autocast(dtypes: "dict[str, torch.dtype]") -> ExitStack:
    """Returns a context of autocast in these dtypes, by type of device; float32 is none.

    Casts are not cached: the cache would live as long as the context, and weights change in it.
    """
    with ExitStack() as regions:
        for kind, dtype in dtypes.items():
            low = dtype != torch.float32
            arguments = {"dtype": dtype} if low else {}
            region = torch.autocast(kind, enabled=low, cache_enabled=False, **arguments)
            regions.enter_context(region)
        return regions.pop_all()


def _leave_in_child() -> None:
    """A process forked within a context, such as a `DataLoader`'s worker, is outside of it."""
    for entry in reversed(_entered.stack):
        for kind in entry.dtypes:
            torch.set_autocast_enabled(kind, False)
    _entered.stack.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_in_child)
