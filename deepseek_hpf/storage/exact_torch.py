"""Exact forms of what PyTorch keeps for the backward pass: bits, small integers, no zeros.

Their size depends on the values, which only a framework that runs operation by operation allows:
in a program that is compiled ahead, every tensor has the size that the worst case needs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from deepseek_hpf.storage.group_quantiser_torch import as_mask, pack_codes, unpack_codes

WORTH = 0.9  # of its bytes, that a tensor may take at most to be packed
_BITS_AS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)


class Packed(Protocol):
    """A tensor in another form."""

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory."""

    def restore(self) -> torch.Tensor:
        """Returns the tensor, contiguous."""


@dataclass(frozen=True)
class Bits:
    """Booleans, one bit each.

    Args:
        bits: Eight in a byte.
        shape: Of the tensor.
    """

    bits: torch.Tensor
    shape: torch.Size

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory."""
        return self.bits.nbytes

    def restore(self) -> torch.Tensor:
        """Returns the booleans."""
        flat = unpack_codes(self.bits, 1).view(-1)[: self.shape.numel()]
        return flat.view(self.shape).to(torch.bool)


@dataclass(frozen=True)
class Narrowed:
    """Integers in a smaller type that holds them.

    Args:
        values: The integers.
        dtype: Of the tensor.
    """

    values: torch.Tensor
    dtype: torch.dtype

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes

    def restore(self) -> torch.Tensor:
        """Returns the integers."""
        return self.values.to(self.dtype)


@dataclass(frozen=True)
class Sparse:
    """The values other than zero, and a bit for each place.

    Args:
        filled: Where they are.
        values: The values, in order.
    """

    filled: Bits
    values: torch.Tensor

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory."""
        return self.filled.kept_bytes + self.values.nbytes

    def restore(self) -> torch.Tensor:
        """Returns the values, zeros among them."""
        filled = self.filled.restore()
        return self.values.new_zeros(filled.shape).masked_scatter_(filled, self.values)


def pack_exactly(x: torch.Tensor) -> Packed | None:
    """Packs a tensor without loss, if that pays.

    Args:
        x: Any tensor, contiguous.

    Returns:
        A mask of booleans, or of zeros and one other value, as bits; integers in the smallest type
        that holds them; other values without their zeros. None where nothing is gained.

    Example:
        >>> import torch
        >>> from deepseek_hpf.storage.exact_torch import pack_exactly
        >>> x = torch.randn(4096).relu()
        >>> packed = pack_exactly(x)
        >>> torch.equal(packed.restore(), x), packed.kept_bytes < 0.7 * x.nbytes
        (True, True)
    """
    x = x.detach()
    if x.dtype == torch.bool:
        return _bits(x)
    if x.dtype.is_floating_point:
        return as_mask(x) or _without_zeros(x)
    return None if x.dtype.is_complex or not x.numel() else _narrowed(x)


def _bits(x: torch.Tensor) -> Bits:
    flat = x.reshape(-1).view(torch.uint8)
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    return Bits(pack_codes(padded.view(1, -1), 1), x.shape)


def _narrowed(x: torch.Tensor) -> Narrowed | None:
    low, high = (int(bound) for bound in torch.aminmax(x))
    for dtype in _NARROW:
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max and dtype.itemsize < x.dtype.itemsize:
            return Narrowed(x.to(dtype), x.dtype)
    return None


def _without_zeros(x: torch.Tensor) -> Sparse | None:
    # By their bits: a negative zero is a value.
    filled = x.view(_BITS_AS[x.dtype.itemsize]).ne(0)
    share = float(filled.sum()) / max(x.numel(), 1)
    if share * x.dtype.itemsize + 1 / 8 > WORTH * x.dtype.itemsize:
        return None
    return Sparse(_bits(filled), x[filled])
