"""The number formats: range, resolution, promotion, by their bit layout. Pure Python."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from deepseek_hpf.errors import ConfigError


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, an exponent, a mantissa.

    A normal number is `±1.m × 2^(e - bias)` with `bias = 2^(exponent_bits - 1) - 1`; exponent 0
    holds zero and the subnormals. In the IEEE formats the highest exponent holds infinities and
    NaN; a format without infinities uses it for numbers, all but the one whose mantissa is all
    ones.

    Args:
        name: Keras's name of it.
        exponent_bits: Number of bits of the exponent.
        mantissa_bits: Number of bits of the mantissa, the leading one not counted.
        has_infinity: Whether the highest exponent is kept for infinities.

    Example:
        >>> from deepseek_hpf.dtypes import FORMATS
        >>> FORMATS["float16"].max
        65504.0
        >>> FORMATS["bfloat16"].epsilon
        0.0078125

    References:
        IEEE 754-2019; Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv:2209.05433).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def max(self) -> float:
        """The largest finite number."""
        top = 2**self.exponent_bits - (2 if self.has_infinity else 1) - self.bias
        # Without infinities the all-ones mantissa of the highest exponent is NaN: one number less.
        numbers_below_two = 1 if self.has_infinity else 2
        return math.ldexp(2.0 - numbers_below_two * self.epsilon, top)

    @property
    def epsilon(self) -> float:
        """Distance from 1.0 to the next larger number."""
        return math.ldexp(1.0, -self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number of full resolution."""
        return math.ldexp(1.0, 1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return math.ldexp(self.epsilon, 1 - self.bias)

    def holds(self, other: "Format") -> bool:
        """Whether every finite number of `other` is one of this format too."""
        return (
            self.mantissa_bits >= other.mantissa_bits
            and self.max >= other.max
            and self.smallest_subnormal <= other.smallest_subnormal
        )


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Format("float64", 11, 52),
            Format("float32", 8, 23),
            Format("bfloat16", 8, 7),
            Format("float16", 5, 10),
            Format("float8_e5m2", 5, 2),
            Format("float8_e4m3fn", 4, 3, has_infinity=False),
        )
    }
)


def format_of(dtype: str) -> Format:
    """The format of this name.

    Args:
        dtype: E.g. `"bfloat16"`.

    Raises:
        ConfigError: It is the name of no known floating-point format.
    """
    if dtype not in FORMATS:
        raise ConfigError(
            f"Expected the name of a floating-point format, one of {', '.join(FORMATS)}. "
            f"Received: dtype={dtype!r}"
        )
    return FORMATS[dtype]


def promote(dtype: str, lacking: Literal["range", "resolution"]) -> str:
    """The format to go to where `dtype` fails, by what it lacks.

    Values that overflow or underflow lack range, and bfloat16 has float32's at half the size;
    values that are rounded too coarsely lack resolution, for which the way out is always float32:

        range:       float8, float16 -> bfloat16 -> float32
        resolution:  anything -> float32

    Args:
        dtype: Name of the format that failed.
        lacking: `"range"` or `"resolution"`.

    Returns:
        Name of the next format; float32 and float64 are at the top and stay.

    Raises:
        ConfigError: `dtype` is no known format.

    Example:
        >>> promote("float16", "range"), promote("float16", "resolution")
        ('bfloat16', 'float32')
    """
    current = format_of(dtype)
    if current.holds(FORMATS["float32"]):
        return dtype
    if lacking == "range" and FORMATS["bfloat16"].max > current.max:
        return "bfloat16"
    return "float32"


def common(first: str, second: str) -> str:
    """The smallest format that holds every number of both, e.g. float32 for float16 and bfloat16.

    Raises:
        ConfigError: Either is no known format.
    """
    both = (format_of(first), format_of(second))
    able = [entry for entry in FORMATS.values() if all(entry.holds(each) for each in both)]
    return min(able, key=lambda entry: entry.bits).name
