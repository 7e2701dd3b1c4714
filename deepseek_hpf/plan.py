"""`PrecisionPlan`: the precision of every layer, as a value to compare, hash, keep and send."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator

from deepseek_hpf.config import ActivationStorage, BackwardDTypeName, ConfigSection
from deepseek_hpf.config_json import read_json_object
from deepseek_hpf.config_wording import expects, shown, shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath, write_text_atomically


class LayerPlan(ConfigSection):
    """What one layer does. None leaves what the layer has.

    Example:
        >>> from deepseek_hpf.plan import LayerPlan
        >>> LayerPlan(policy="mixed_bfloat16").to_dict()
        {'policy': 'mixed_bfloat16'}
    """

    policy: Annotated[str, Field(min_length=1)] | None = None
    """Name of a Keras dtype policy. Never "auto": a plan is what has been decided."""
    kernel: bool | None = None
    """Whether the layer runs a fused kernel."""
    backward: BackwardDTypeName | None = None
    """Dtype in which its gradients are computed while it computes in 16 bits."""
    activations: ActivationStorage | None = None
    """How it keeps what its backward pass needs."""

    @field_validator("policy")
    @classmethod
    def _is_decided(cls, name: str | None) -> str | None:
        if name == "auto":
            raise expects('the policy that "auto" stands for')
        return name

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys that differ from None: plans that say the same are written the same.

        Returns:
            What `from_dict` makes an equal `LayerPlan` of.
        """
        return self.model_dump(mode="json", exclude_none=True)


class PrecisionPlan(Mapping[str, LayerPlan]):
    """An immutable mapping from layer path to `LayerPlan`. The order of the paths does not count.

    Args:
        layers: Path to plan.

    Raises:
        ConfigError: `layers` is no mapping, a path not a string, or a plan not a `LayerPlan`.

    Example:
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> plan = PrecisionPlan({"stem": LayerPlan(policy="float32")})
        >>> faster = plan.replace({"head": LayerPlan(policy="mixed_bfloat16")})
        >>> faster.changes_from(plan)
        ('head',)
        >>> PrecisionPlan.from_dict(faster.to_dict()) == faster
        True
    """

    __slots__ = ("_digest", "_layers")
    _layers: dict[str, LayerPlan]
    _digest: str | None

    def __init__(self, layers: Mapping[str, LayerPlan] | None = None):
        layers = {} if layers is None else layers
        if not isinstance(layers, Mapping):
            raise ConfigError(f"expected a dict from layer path to plan. Received: {shown(layers)}")
        copied = dict(layers)
        for path, layer in copied.items():
            if not isinstance(path, str) or not isinstance(layer, LayerPlan):
                raise ConfigError(
                    "expected layer paths (str) and their LayerPlan. "
                    f"Received: {shown(path)}: {shown(layer)}"
                )
        object.__setattr__(self, "_layers", copied)
        object.__setattr__(self, "_digest", None)

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(
            f"PrecisionPlan is immutable. Received: {name}={shown(value)}. Use `.replace`."
        )

    def __delattr__(self, name: str) -> None:
        raise ConfigError(f"PrecisionPlan is immutable. Received: del {name}. Use `.replace`.")

    def __getitem__(self, path: str) -> LayerPlan:
        return self._layers[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __eq__(self, other: object) -> bool:
        return self._layers == other._layers if isinstance(other, PrecisionPlan) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._layers.items()))

    def __repr__(self) -> str:
        return f"PrecisionPlan({len(self)} layers, digest={self.digest()[:12]})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    def replace(self, layers: Mapping[str, LayerPlan]) -> Self:
        """Returns a plan with some layers added or changed.

        Args:
            layers: Path to its new plan.

        Returns:
            The new plan.
        """
        return type(self)({**self._layers, **layers})

    def changes_from(self, other: "PrecisionPlan") -> tuple[str, ...]:
        """Returns the paths that the two plans treat differently, sorted.

        Args:
            other: The plan to compare with.

        Returns:
            Paths of this plan or the other.
        """
        paths = self._layers.keys() | other._layers.keys()
        return tuple(sorted(p for p in paths if self.get(p) != other.get(p)))

    def digest(self) -> str:
        """SHA-256 of what the plan says, the same in every process and on every machine.

        Returns:
            64 hexadecimal digits.
        """
        if self._digest is None:
            text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
            object.__setattr__(self, "_digest", hashlib.sha256(text.encode("ascii")).hexdigest())
        return str(self._digest)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns plain dicts, the paths sorted.

        Returns:
            What `from_dict` makes an equal plan of.
        """
        return {path: self._layers[path].to_dict() for path in sorted(self._layers)}

    @classmethod
    def from_dict(cls, layers: Mapping[str, Mapping[str, Any]]) -> Self:
        """Makes a plan from what `to_dict` returned.

        Args:
            layers: Path to the keys of a `LayerPlan`.

        Returns:
            The plan.

        Raises:
            ConfigError: A path, key or value is not valid; the message names the path.
        """
        if not isinstance(layers, Mapping):
            raise ConfigError(f"expected a dict from layer path to plan. Received: {shown(layers)}")
        plans = {}
        for path, values in layers.items():
            try:
                plans[path] = LayerPlan.from_dict(values)
            except ConfigError as error:
                raise ConfigError(f"{shown(path)}: {error}") from None
        return cls(plans)

    def to_json(self, path: StrPath) -> None:
        """Writes a file, whole or not at all.

        Args:
            path: Where to. An existing file is replaced.

        Raises:
            OSError: The place cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        write_text_atomically(path, f"{text}\n")

    @classmethod
    def from_json(cls, path: StrPath) -> Self:
        """Reads a file that `to_json` wrote.

        Args:
            path: The file.

        Returns:
            The plan.

        Raises:
            ConfigError: The file cannot be read, or its content is not a plan.
        """
        values = read_json_object(path)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{shown_path(path)}: {error}") from None
