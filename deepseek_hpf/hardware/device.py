"""What a device is: its name, its memory, and what each number format is on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from deepseek_hpf.dtypes import FORMATS

DeviceKind = Literal["cpu", "gpu", "tpu"]
Level = Literal["native", "emulated", "none"]

# The order of the columns wherever devices are shown.
DTYPES = tuple(FORMATS)


@dataclass(frozen=True)
class Support:
    """What one number format is on one device, and why.

    Args:
        level: `"native"`: the units that multiply matrices take the format. `"emulated"`: results
            are right, but the format is converted or runs outside those units, so that no speed is
            gained. `"none"`: it cannot be computed in.
        reason: A phrase, without a full stop, e.g. `"compute capability 8.0 has bfloat16 tensor
            cores"`.
    """

    level: Level
    reason: str

    def __bool__(self) -> bool:
        return self.level == "native"


UNKNOWN = Support("none", "nothing is known about this format on this device")


@dataclass(frozen=True)
class Device:
    """One processor that a model can run on.

    Args:
        kind: `"cpu"`, `"gpu"` or `"tpu"`.
        vendor: `"nvidia"`, `"amd"`, `"intel"`, `"google"`, `"apple"`, `"arm"` or `"unknown"`.
        name: As the vendor sells it, e.g. `"NVIDIA H200"`.
        architecture: E.g. `"hopper"`, `"gfx90a"`, `"x86_64"`; empty if unknown.
        memory_total: Bytes, None if unknown.
        memory_free: Bytes at the time of asking, None if unknown.
        compute_capability: CUDA's `(major, minor)`, None elsewhere or if unknown.
        flags: Instruction set extensions of a CPU that bear on number formats.
        support: Format name to what it is on this device.

    Example:
        >>> from deepseek_hpf.hardware.device import Device, Support
        >>> has = Support("native", "made up")
        >>> gpu = Device("gpu", "nvidia", "made up", support={"bfloat16": has})
        >>> gpu.native("bfloat16"), gpu.native("float16")
        (True, False)
    """

    kind: DeviceKind
    vendor: str
    name: str
    architecture: str = ""
    memory_total: int | None = None
    memory_free: int | None = None
    compute_capability: tuple[int, int] | None = None
    flags: frozenset[str] = frozenset()
    support: Mapping[str, Support] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # A frozen device must not change through the mapping it was given either.
        object.__setattr__(self, "support", MappingProxyType(dict(self.support)))

    def native(self, dtype: str) -> bool:
        """Whether matrix products run in `dtype` in the units made for them."""
        return self.of(dtype).level == "native"

    def of(self, dtype: str) -> Support:
        """What `dtype` is here; `"none"` for a format that nothing is known about."""
        return self.support.get(dtype, UNKNOWN)

    def __reduce__(self) -> tuple[object, ...]:
        # A mapping proxy cannot be pickled.
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return (_device, ({**fields, "support": dict(self.support)},))


def _device(fields: dict[str, object]) -> Device:
    return Device(**fields)  # type: ignore[arg-type]
