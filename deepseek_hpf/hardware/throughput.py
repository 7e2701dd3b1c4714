"""What number formats reach on a device, as measured: figures, and ratios between them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

from deepseek_hpf.errors import ConfigError

Work = Literal["matmul", "convolution", "cast", "copy"]
NO_TIME = "not measured: no time was left"
WORKS: tuple[Work, ...] = get_args(Work)
UNITS: Mapping[Work, str] = {
    "matmul": "FLOP/s",
    "convolution": "FLOP/s",
    "cast": "B/s",
    "copy": "B/s",
}


@dataclass(frozen=True)
class Figure:
    """One measured rate.

    Args:
        rate: FLOP/s or bytes/s; None where there is none.
        note: Why there is none, or what it was taken under; a phrase.
    """

    rate: float | None
    note: str = ""


@dataclass(frozen=True)
class Throughput:
    """What one format reaches on one device.

    Args:
        dtype: Name of the format.
        matmul: FLOP/s of a product of square matrices, its gradients included.
        convolution: FLOP/s of a convolution of images, 3 by 3, its gradients included.
        cast: Bytes/s, read and written, of conversions from float32 and back.
        copy: Bytes/s, read and written, of a copy.
    """

    dtype: str
    matmul: Figure
    convolution: Figure
    cast: Figure
    copy: Figure

    def of(self, work: Work) -> Figure:
        """The figure of a work."""
        figure: Figure = getattr(self, work)
        return figure


@dataclass(frozen=True)
class ProbeResult:
    """What `hardware.probe` measured.

    Args:
        device: Name of the device.
        backend: Keras's name of the back end that computed.
        throughputs: One for each format.

    Example:
        >>> from deepseek_hpf.hardware.throughput import Figure, ProbeResult, Throughput
        >>> none = Figure(None)
        >>> rates = {"float32": 2e9, "bfloat16": 5e9}
        >>> found = ProbeResult(
        ...     "made up",
        ...     "jax",
        ...     tuple(Throughput(name, Figure(r), none, none, none) for name, r in rates.items()),
        ... )
        >>> found.ratio("bfloat16", "matmul"), found.ratio("bfloat16", "convolution")
        (2.5, None)
    """

    device: str
    backend: str
    throughputs: tuple[Throughput, ...]

    def of(self, dtype: str) -> Throughput:
        """What a format reaches.

        Args:
            dtype: Name of the format.

        Returns:
            Its figures.

        Raises:
            ConfigError: It was not measured.
        """
        for throughput in self.throughputs:
            if throughput.dtype == dtype:
                return throughput
        measured = ", ".join(each.dtype for each in self.throughputs)
        raise ConfigError(
            f"Expected a dtype that was measured, one of {measured}. Received: dtype={dtype!r}"
        )

    def ratio(self, dtype: str, work: Work, over: str = "float32") -> float | None:
        """How many times as fast one format is at a work as another.

        Args:
            dtype: Name of the format.
            work: `"matmul"`, `"convolution"`, `"cast"` or `"copy"`.
            over: Name of the other format.

        Returns:
            The ratio; None where either has no figure.

        Raises:
            ConfigError: Either was not measured.
        """
        rate, other = self.of(dtype).of(work).rate, self.of(over).of(work).rate
        return None if rate is None or other is None else rate / other

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values, from which `from_dict` makes it again."""
        values = asdict(self)
        return {**values, "throughputs": list(values["throughputs"])}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes a result of what `to_dict` returned.

        Args:
            values: Its keys.

        Returns:
            The result.

        Raises:
            ConfigError: The values are no such dictionary.
        """
        try:
            return cls(
                str(values["device"]),
                str(values["backend"]),
                tuple(_throughput(each) for each in values["throughputs"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "Expected what `ProbeResult.to_dict` returned. Received values without its shape: "
                f"{type(error).__name__}: {error}"
            ) from error


def _throughput(values: Mapping[str, Any]) -> Throughput:
    return Throughput(values["dtype"], **{work: _figure(values[work]) for work in WORKS})


def _figure(values: Mapping[str, Any]) -> Figure:
    rate = values["rate"]
    return Figure(None if rate is None else float(rate), str(values["note"]))
