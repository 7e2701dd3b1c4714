"""PyTorch: the step runs on fake tensors, which have a size and a lifetime, and no content."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.memory.traced_step import TracedStep
from deepseek_hpf.storage import saved_calls_torch

ORIGIN = (
    "PyTorch's eager step run on fake tensors: the sizes and lifetimes of all it would make, "
    "without what a kernel needs inside"
)


def trace(model: keras.Model, batch: Any) -> TracedStep:
    """Runs the step on fake tensors; the model's own are not touched.

    Args:
        model: Built and compiled, with stand-ins for what is not built.
        batch: `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        The step's figures.

    Raises:
        ConfigError: The activations of some layers are compressed.
    """
    packing = [layer.name for layer in model._flatten_layers() if _packs(layer)]
    if packing:
        raise ConfigError(
            "Expected a model that keeps its activations as they are computed: how far packing "
            "goes depends on values, which an estimate has not. Received one whose layers pack "
            f"them: {', '.join(packing[:3])} and so on. Take that back with `revert()`; the bytes "
            "kept then are those before packing."
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        mapping = [(variable, _fake_of(variable)) for variable in _variables(model)]
        batch = keras.tree.map_structure(_fake_input, tuple(batch))
    state = {_key(value) for _, value in mapping}
    alive = _Alive(state | {_key(value) for value in keras.tree.flatten(batch) if _is(value)})
    saved = _Storages(state)
    with (
        _gradients_kept(model),
        keras.StatelessScope(state_mapping=mapping),
        mode,
        alive,
        torch.autograd.graph.saved_tensors_hooks(_held_by(saved), lambda tensor: tensor),
    ):
        model.train_step(batch)
        saved.begin()
        # Only a later step begins with the gradients of the one before it.
        model.train_step(batch)
    note = "it trains with torch.compile, which fuses operations and keeps less"
    return TracedStep(saved.peak, alive.storages.peak, ORIGIN, (note,) if model.jit_compile else ())


class _Storages:
    """The bytes of the storages shown to it, each once and for as long as it lives.

    A storage is known by its address, which another one may get after it: hence the lifetimes.

    Args:
        before: Addresses of what is not counted.
    """

    def __init__(self, before: Iterable[int]) -> None:
        self.peak = 0
        self._now = 0
        self._known: dict[int, Any] = dict.fromkeys(before)

    def begin(self) -> None:
        """Begins the peak anew."""
        self.peak = self._now

    def hold(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage from now on."""
        storage = tensor.untyped_storage()
        key = int(storage._cdata)
        if key not in self._known:
            size = storage.nbytes()
            self._now += size
            self.peak = max(self.peak, self._now)
            self._known[key] = weakref.ref(storage, lambda _: self._free(key, size))

    def _free(self, key: int, size: int) -> None:
        self._now -= size
        del self._known[key]


class _Alive(TorchDispatchMode):
    """Counts the storages that operations make."""

    def __init__(self, before: Iterable[int]) -> None:
        super().__init__()
        self.storages = _Storages(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return _usual(args[0].dtype)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if _is(value):
                self.storages.hold(value)
        return result


def _held_by(saved: _Storages) -> Callable[[torch.Tensor], torch.Tensor]:
    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.hold(tensor)
        # Detached: a result that refers to its own operation would never be freed.
        return tensor.detach()

    return note


def _usual(dtype: torch.dtype) -> bool | float | int:
    """What Python reads from a fake tensor: that all is finite, and some number of a seed."""
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _variables(model: keras.Model) -> list[Any]:
    found = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return list({id(variable): variable for variable in found}.values())


def _fake_of(variable: Any) -> torch.nn.Parameter:
    value = variable.value
    empty = torch.empty(tuple(value.shape), dtype=value.dtype, device=value.device)
    return torch.nn.Parameter(empty, requires_grad=value.requires_grad)


def _fake_input(value: Any) -> Any:
    if value is None:
        return None
    dtype = keras.backend.standardize_dtype(value.dtype)
    return keras.ops.zeros(value.shape, dtype)


def _packs(layer: keras.Layer) -> bool:
    call = vars(layer).get("call")
    return bool(getattr(call, "__globals__", {}).get("__name__") == saved_calls_torch.__name__)


def _is(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextlib.contextmanager
def _gradients_kept(model: keras.Model) -> Iterator[None]:
    """A step begins with `zero_grad` on the real parameters, too."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
