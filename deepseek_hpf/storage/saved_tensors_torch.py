"""What PyTorch's operations save for their backward passes, packed on the way."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from deepseek_hpf.storage.exact_torch import WORTH, Packed, pack_exactly
from deepseek_hpf.storage.group_quantiser_torch import as_mask, quantise

BITS = {"int8": 8, "int4": 4}
SMALLEST = 4096  # bytes: packing less than that costs more than it brings
# What a weight passes through on its way to the operation that saves it.
_VIEWS = ("TBackward", "ToCopyBackward", "TransposeBackward", "PermuteBackward", "ViewBackward",
          "UnsafeViewBackward", "ReshapeAliasBackward", "CloneBackward", "SqueezeBackward",
          "UnsqueezeBackward", "ExpandBackward", "AsStridedBackward")  # fmt: skip


@dataclass(frozen=True)
class _Saved:
    """A packed tensor, with the order of its axes in memory."""

    packed: Packed
    shape: torch.Size
    order: list[int]

    def restore(self) -> torch.Tensor:
        in_memory = self.packed.restore().view([self.shape[axis] for axis in self.order])
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return in_memory.permute(back)


@dataclass
class SavedTensors:
    """Packs what operations save while `scope` is entered.

    Left as they are: parameters, and what is a view or a cast of one; tensors below `smallest`
    bytes, those that hold infinities or NaN, and those that packing would not make smaller. A
    tensor that several operations save is packed once.

    Args:
        storage: `"int8"` or `"int4"` (masks and integers stay exact), or `"sparse"` (all exact).
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.
        frozen: Parameters without gradient, whose casts nothing else tells from activations.
        known: What has been packed; several may share it, of one storage and seed.

    Example:
        >>> import torch
        >>> from deepseek_hpf.storage.saved_tensors_torch import SavedTensors
        >>> x, w = torch.randn(64, 64), torch.randn(64, 64, requires_grad=True)
        >>> saved = SavedTensors("int8")
        >>> with saved.scope():
        ...     y = (x @ w).square().mean()
        >>> y.backward()
        >>> saved.bytes_before, saved.bytes_after
        (32768, 8448)
    """

    storage: str
    seed: int = 0
    smallest: int = SMALLEST
    frozen: Iterable[torch.Tensor] = ()
    known: dict[Any, Any] = field(default_factory=dict, repr=False)
    bytes_before: int = field(default=0, init=False)
    """Bytes of the tensors that were packed, each once; never reset."""
    bytes_after: int = field(default=0, init=False)
    """What they took when packed; never reset."""

    def __post_init__(self) -> None:
        self._frozen = {tuple(sorted(p.shape)) for p in self.frozen}

    def scope(self) -> Any:
        """Returns a context manager."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, self._unpack)

    def pack(self, tensor: torch.Tensor) -> Any:
        """What is saved for a tensor.

        Args:
            tensor: What an operation saves.

        Returns:
            What `packed_of` knows, or the tensor, which is left.
        """
        if self._is_left(tensor):
            # Detached: a result that refers to its own operation would never be freed.
            return tensor if tensor.is_leaf else tensor.detach()
        order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
        in_memory = tensor.detach().permute(order)
        if not in_memory.is_contiguous():
            return tensor.detach()
        packed = self._packed_once(in_memory)
        return tensor.detach() if packed is None else _Saved(packed, tensor.shape, order)

    def is_parameter(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter, a frozen one too, or a view or a cast of one."""
        is_frozen = not tensor.requires_grad and tuple(sorted(tensor.shape)) in self._frozen
        return is_frozen or _is_parameter(tensor)

    @staticmethod
    def _unpack(saved: Any) -> torch.Tensor:
        return saved.restore() if isinstance(saved, _Saved) else saved

    def _is_left(self, tensor: torch.Tensor) -> bool:
        return (
            tensor.nbytes < self.smallest
            or tensor.layout != torch.strided
            or type(tensor) not in (torch.Tensor, torch.nn.Parameter)
            or self.is_parameter(tensor)
        )

    def _packed_once(self, x: torch.Tensor) -> Packed | None:
        storage = x.untyped_storage()
        reference = StorageWeakRef(storage)
        # The address is not used again while the weak reference lasts.
        # {address of a storage that lives: (its weak reference, {part of it: packed})}
        if reference.cdata not in self.known:
            self._forget_freed()
            self.known[reference.cdata] = (reference, {})
        parts = self.known[reference.cdata][1]
        part = (x.storage_offset(), x.numel(), x.dtype, x._version)
        found = parts.get(part, _nothing)()
        if found is None:
            found = self._pack_anew(x)
            if found is not None:
                parts[part] = weakref.ref(found)
        return found

    def _pack_anew(self, x: torch.Tensor) -> Packed | None:
        packed: Packed | None
        with torch.no_grad():
            flat = x.reshape(-1)
            if self.storage == "sparse" or not x.dtype.is_floating_point:
                packed = pack_exactly(flat)
            else:
                packed = as_mask(flat) or quantise(flat, BITS[self.storage], self.seed)
        if packed is None or packed.kept_bytes > WORTH * x.nbytes:
            return None
        self.bytes_before += x.nbytes
        self.bytes_after += packed.kept_bytes
        return packed

    def _forget_freed(self) -> None:
        freed = [key for key, (reference, _) in self.known.items() if reference.expired()]
        for key in freed:
            del self.known[key]


def packed_of(saved: Any) -> Packed | None:
    """The packed form of what `SavedTensors.pack` has returned; None where a tensor was left."""
    return saved.packed if isinstance(saved, _Saved) else None


def _nothing() -> None:
    return None


def _is_parameter(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a parameter, or a view or a cast of one."""
    if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
        return True
    if tensor.is_leaf:
        return tensor.requires_grad  # a leaf with a gradient is held by whoever made it
    node = tensor.grad_fn
    while node is not None and node.name().rstrip("0123456789") in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name().endswith("AccumulateGrad")
