"""PyTorch: a record of the operations that are dispatched, each timed if asked for."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from deepseek_hpf.profiler.census_flops import elementwise_flops
from deepseek_hpf.profiler.census_operations import Array, TracedOperation

_MOVES = frozenset(
    """
    _to_copy copy_ clone cat stack index_select gather index constant_pad_nd fill_ zero_ zeros
    ones full empty empty_like zeros_like ones_like full_like new_zeros scalar_tensor arange
    contiguous select_backward slice_backward embedding one_hot repeat flip roll
    """.split()  # noqa: SIM905 - a list of words, one a line otherwise
)


class OperationRecorder(TorchDispatchMode):
    """Sees every operation below autograd, forward and backward.

    Args:
        measure: Whether to time each operation.
        place: Says where in the program the running operation is.
    """

    def __init__(self, measure: bool, place: Callable[[], str]) -> None:
        super().__init__()
        self.operations: list[TracedOperation] = []
        self._measure = measure
        self._place = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = _now(self._measure)
        result = func(*args, **kwargs)
        seconds = _now(self._measure) - start if self._measure else None
        if not getattr(func, "is_view", False):
            self._add(func, args, kwargs, result, seconds)
        return result

    def _add(self, func: Any, args: Any, kwargs: Any, result: Any, seconds: float | None) -> None:
        packet = func.overloadpacket
        name = packet.__name__
        inputs = _arrays((args, kwargs))
        outputs = _arrays(result)
        if name in ("detach", "alias", "_local_scalar_dense", "lift_fresh") or not outputs:
            return
        if name == "copy_" and len(inputs) > 1:  # writes the first, reads the second
            inputs = inputs[1:]
        casts = name in ("_to_copy", "copy_") and inputs and inputs[0].dtype != outputs[0].dtype
        flops = 0.0
        if packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=result))
        elif name not in _MOVES:
            flops = elementwise_flops(inputs, outputs)
        place = self._place()
        self.operations.append(
            TracedOperation(name, place, inputs, outputs, flops, bool(casts), seconds=seconds)
        )


def _arrays(values: Any) -> tuple[Array, ...]:
    return tuple(
        Array(str(leaf.dtype).removeprefix("torch."), tuple(leaf.shape))
        for leaf in tree_leaves(values)
        if isinstance(leaf, torch.Tensor)
    )


def _now(wait: bool) -> float:
    if wait and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
