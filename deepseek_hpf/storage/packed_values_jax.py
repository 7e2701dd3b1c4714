"""Forms in which a value waits for the backward pass, of a size known when the step is traced."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from deepseek_hpf.storage.group_quantiser import GroupQuantiser

BITS = {"int8": 8, "int4": 4}
WORTH = 0.9  # of its bytes, that a value may take at most to be packed


class Form(Protocol):
    """How a value of one shape and dtype is kept."""

    @property
    def exact(self) -> bool:
        """Whether the value comes back as it was."""

    @property
    def held(self) -> bool:
        """Whether what is computed of it in the backward pass must not be computed before."""

    def kept_bytes(self, aval: Any) -> float:
        """Bytes in memory."""

    def pack(self, value: Any) -> Any:
        """Makes the packed form, arrays in a nested structure."""

    def restore(self, packed: Any, aval: Any) -> Any:
        """Makes the value again."""


@dataclass(frozen=True)
class Whole:
    """As it is.

    Args:
        free: Whether it is kept by others anyway, as a parameter is.
        held: Whether what is computed of it in the backward pass must not be computed before.
    """

    free: bool = False
    held: bool = False
    exact = True

    def kept_bytes(self, aval: Any) -> float:
        """Bytes in memory."""
        return 0 if self.free else bytes_of(aval)

    def pack(self, value: Any) -> Any:
        """Returns the value."""
        return value

    def restore(self, packed: Any, aval: Any) -> Any:
        """Returns the value."""
        return packed


@dataclass(frozen=True)
class Bits:
    """Booleans, eight in a byte."""

    exact = True
    held = True

    def kept_bytes(self, aval: Any) -> float:
        """Bytes in memory."""
        return -(-aval.size // 8)

    def pack(self, value: Any) -> Any:
        """Returns uint8."""
        return jnp.packbits(value.reshape(-1))

    def restore(self, packed: Any, aval: Any) -> Any:
        """Returns the booleans."""
        return jnp.unpackbits(packed, count=aval.size).astype(bool).reshape(aval.shape)


@dataclass(frozen=True)
class Codes:
    """Codes of 8 or 4 bits.

    Args:
        quantiser: What makes them.
    """

    quantiser: GroupQuantiser
    exact = False
    held = True

    def kept_bytes(self, aval: Any) -> float:
        """Bytes in memory."""
        return self.quantiser.kept_bytes(aval.size, aval.dtype.name)

    def pack(self, value: Any) -> Any:
        """Returns codes and bounds, all of them integers: a layer around packs floats only."""
        codes, low, step = self.quantiser.compress(value)
        return codes, _as_integers(low), _as_integers(step)

    def restore(self, packed: Any, aval: Any) -> Any:
        """Returns the values, up to rounding."""
        codes, low, step = packed
        parts = (codes, _as_floats(low), _as_floats(step))
        return self.quantiser.restore(parts, aval.shape, aval.dtype.name)


def form_of(aval: Any, storage: str, seed: int, smallest: int) -> Form:
    """Chooses a form for an activation.

    Args:
        aval: Its shape and dtype.
        storage: `"int8"`, `"int4"` or `"sparse"`.
        seed: Of the rounding.
        smallest: Bytes of the smallest value that is packed.

    Returns:
        Bits for booleans, codes for floating-point values unless all is to be exact.
    """
    if bytes_of(aval) < smallest:
        return Whole()
    if aval.dtype == bool:
        return Bits()
    if storage in BITS and jnp.issubdtype(aval.dtype, jnp.floating) and aval.dtype.itemsize > 1:
        codes = Codes(GroupQuantiser(BITS[storage], seed))
        if codes.kept_bytes(aval) <= WORTH * bytes_of(aval):
            return codes
    return Whole()


def bytes_of(aval: Any) -> int:
    """The bytes of an array.

    Args:
        aval: Its shape and dtype.

    Returns:
        Bytes; 0 for what has no dtype of a size.
    """
    return int(aval.size * getattr(aval.dtype, "itemsize", 0))


def _as_integers(x: Any) -> Any:
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}"))


def _as_floats(x: Any) -> Any:
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"float{8 * x.dtype.itemsize}"))
