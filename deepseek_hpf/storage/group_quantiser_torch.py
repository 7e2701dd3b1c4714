"""The group quantiser for PyTorch, where every operation is a pass over memory.

It makes the codes that `GroupQuantiser` makes, block by block, so that what lies between the
operations stays in the cache. It needs no Keras.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.storage.noise import GROUP, NOISE_LEVELS, offset, table

BLOCK = 1024 * GROUP  # values; in float32 they fill a core's cache


@dataclass(frozen=True)
class Codes:
    """A quantised tensor.

    Args:
        codes: uint8; several codes of fewer than 8 bits in a byte.
        low: Half the lower bound of each group.
        step: Half the step of each group.
        bits: Of a code.
        shape: Of the tensor.
        dtype: Of the tensor.
    """

    codes: torch.Tensor
    low: torch.Tensor
    step: torch.Tensor
    bits: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def kept_bytes(self) -> int:
        """Bytes in memory."""
        return sum(part.nbytes for part in (self.codes, self.low, self.step))

    def restore(self) -> torch.Tensor:
        """Returns the values, up to rounding."""
        values = self.codes.new_empty(self.codes.shape[0], GROUP, dtype=self.dtype)
        for rows in _blocks(values):
            code = unpack_codes(self.codes[rows], self.bits).to(self.low.dtype)
            filled = torch.ne(code, 0, out=torch.empty_like(code))
            half = code.sub_(1).mul_(self.step[rows]).add_(self.low[rows])
            most = 0.5 * torch.finfo(self.dtype).max
            values[rows] = half.clamp_(-most, most).mul_(2).mul_(filled)
        return values.view(-1)[: self.shape.numel()].view(self.shape)


def quantise(x: torch.Tensor, bits: int, seed: int = 0) -> Codes | None:
    """Packs a tensor.

    Args:
        x: Floating-point values, contiguous.
        bits: 8 or 4.
        seed: Of the rounding.

    Returns:
        The packed tensor; None where a value is infinite or NaN: such a tensor is kept whole.

    Raises:
        ConfigError: There are no such bits.

    Example:
        >>> import torch
        >>> from deepseek_hpf.storage.group_quantiser_torch import quantise
        >>> x = torch.tensor([0.0, 1.0, 1.5, 2.0])
        >>> bool(((quantise(x, 8).restore() - x).abs() <= 1 / 250).all())
        True
    """
    if bits not in (4, 8):
        raise ConfigError(f"Activations are kept in 4 or 8 bits. Received: bits={bits!r}")
    groups = -(-x.numel() // GROUP)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    codes = x.new_empty(groups, GROUP * bits // 8, dtype=torch.uint8)
    low, step = x.new_empty(2, groups, 1, dtype=wide)
    least = smallest(x.dtype)
    for rows in _blocks(codes):
        half = _grouped(x, rows, wide)
        bounds = _bounds(half, least)
        if bounds is None:
            return None
        low[rows], high = bounds
        step[rows] = (high / (2**bits - 2) - low[rows] / (2**bits - 2)).clamp_(min=least)
        filled = torch.ne(half, 0, out=torch.empty_like(half))
        noise = _noise(low[rows], high, rows.start, seed)
        code = half.sub_(low[rows]).div_(step[rows]).add_(noise).clamp_(1, 2**bits - 0.5)
        codes[rows] = pack_codes(code.mul_(filled).to(torch.uint8), bits)
    return Codes(codes, low, step, bits, x.shape, x.dtype)


def as_mask(x: torch.Tensor) -> Codes | None:
    """Packs a tensor of zeros and one other value, a dropout's mask say, exactly.

    Args:
        x: Floating-point values, contiguous.

    Returns:
        One bit a value; None where there are other values.
    """
    flat = x.detach().view(-1)
    value = flat[flat[:GROUP].abs().argmax()] if len(flat) else flat.sum()
    groups = -(-len(flat) // GROUP)
    codes = x.new_empty(groups, GROUP // 8, dtype=torch.uint8)
    for rows in _blocks(codes):
        block = _grouped(x, rows, x.dtype)
        if not bool((block * (2 * block - value)).abs().amax() == 0):
            return None
        codes[rows] = pack_codes(block.ne(0).to(torch.uint8), 1)
    half = (0.5 * value).expand(groups, 1)
    return Codes(codes, half, half, 1, x.shape, x.dtype)


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Puts codes into bytes.

    Args:
        codes: uint8, shape (rows, columns) with columns a multiple of `8 // bits`.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8, shape (rows, columns * bits / 8).
    """
    if bits == 8:
        return codes
    parts = codes.chunk(8 // bits, dim=1)
    packed = parts[0].clone()
    for place, part in enumerate(parts[1:], 1):
        packed.bitwise_or_(part << (bits * place))
    return packed


def unpack_codes(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """What `pack_codes` was given.

    Args:
        packed: What it has returned.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 codes.
    """
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    parts = [(packed >> (bits * place)) & mask for place in range(8 // bits)]
    return torch.cat(parts, dim=1)


def smallest(dtype: torch.dtype) -> float:
    """A positive number that is not flushed to zero, neither in this format nor in float32."""
    subnormal = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
    return max(subnormal, FORMATS["float32"].smallest_normal)


def _blocks(rows: torch.Tensor) -> Iterator[slice]:
    """All rows at once on an accelerator, whose cache is not in question."""
    size = BLOCK // GROUP if rows.device.type == "cpu" else max(len(rows), 1)
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


def _grouped(x: torch.Tensor, rows: slice, dtype: torch.dtype) -> torch.Tensor:
    """Half of the values of some groups, filled up by zeros."""
    values = x.detach().view(-1)[rows.start * GROUP : rows.stop * GROUP]
    half = torch.mul(values.to(dtype), 0.5)
    filling = -half.numel() % GROUP
    if filling:
        half = torch.nn.functional.pad(half, (0, filling))
    return half.view(-1, GROUP)


def _bounds(half: torch.Tensor, least: float) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The lowest and the highest code's value; None where not all values are finite."""
    low, high = half.amin(1, keepdim=True), half.amax(1, keepdim=True)
    if not bool(torch.isfinite(low + high).all()):
        return None
    low.masked_fill_(low == 0, least)
    return low, torch.maximum(low, high.masked_fill_(high == 0, -least))


def _noise(low: torch.Tensor, high: torch.Tensor, first: int, seed: int) -> torch.Tensor:
    """Numbers from 1 to 2: what truncation makes a code from 1 of."""
    low_bits, high_bits = (bound.float().view(torch.int32) for bound in (low, high))
    index = torch.arange(first, first + len(low), dtype=torch.int32, device=low.device)
    by_group = offset(low_bits, high_bits, index.unsqueeze(1), seed, _shift).to(torch.int16)
    # Sums of int16 wrap: this is the number that is wanted, less NOISE_LEVELS / 2.
    number = by_group + _table(seed, low.device)
    return number.to(low.dtype).add_(NOISE_LEVELS * 1.5 + 0.5).div_(NOISE_LEVELS)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    return (value >> bits) & ((1 << (32 - bits)) - 1)


@functools.lru_cache(maxsize=64)
def _table(seed: int, device: torch.device) -> torch.Tensor:
    shifted = table(seed) + NOISE_LEVELS // 2
    return torch.from_numpy(shifted).to(torch.int16).unsqueeze(0).to(device)
