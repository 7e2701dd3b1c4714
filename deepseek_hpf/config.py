"""The JSON configuration: which precision where, the loss scale, clipping, masters.

Frozen and keyword-only; what is wrong, in a file or in Python, is one `ConfigError` that names the key.
"""

import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from deepseek_hpf.config_json import check_tree, describe, read_json_object, shown, shown_path
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.files import StrPath, write_text_atomically

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FLOAT32_TINY = 2.0**-126  # smallest normal; what is smaller may be flushed to zero
INT32_MAX = 2**31 - 1

PolicyName = Literal[
    "auto", "float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"
]
DTypeName = Literal["float32", "float64", "float16", "bfloat16"]
ActivationStorage = Literal["int8", "int4", "sparse", "recompute"]
ControllerName = Literal["static", "schedule", "threshold", "adaptive"]
# The scale lives in a float32 variable, so every number around it has to be one.
Positive = Annotated[float, Field(ge=FLOAT32_TINY, le=FLOAT32_MAX)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]


class ConfigSection(BaseModel):
    """A frozen part of a configuration that raises `ConfigError` and nothing else.

    `model_fields_set` tells which keys were given, as opposed to filled in by default; they are what `to_dict`
    writes, so that a round trip through JSON keeps the difference.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(describe(error, type(self))) from None

    # Sections inside a section are validated by pydantic's core, not through `__init__`: one error, whole paths.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: object) -> None:
        raise ConfigError(
            f"{type(self).__name__} is frozen. Received: {name}={shown(value)}. "
            f"Derive another one with `.replace({name}=…)`."
        )

    def replace(self, **changes: Any) -> Self:
        """Returns a validated copy with some keys changed.

        Args:
            **changes: Keys and their new values.

        Returns:
            The copy; the original stays as it is.

        Raises:
            ConfigError: A key or value is not valid.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **changes})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Pydantic's copy, but what is updated is validated."""
        return self.replace(**update) if update else super().model_copy(deep=deep)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Makes one from what `to_dict` returned, or from parsed JSON.

        Args:
            values: Keys and values, nested as in the file.

        Returns:
            The section.

        Raises:
            ConfigError: A key or value is not valid.
        """
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise ConfigError(f"expected a dict with string keys. Received: {shown(values)}")
        check_tree(values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Returns the keys that were given, as plain dicts, lists and scalars.

        Returns:
            What `from_dict` makes an equal section of.
        """
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def from_json(cls, path: StrPath) -> Self:
        """Reads a file.

        Args:
            path: A JSON file in UTF-8 of at most 1 MiB.

        Returns:
            The section.

        Raises:
            ConfigError: The file cannot be read, is not strict JSON, or a key or value is not valid. The message
                has at most three lines and begins with the file's name.
        """
        values = read_json_object(path)
        try:
            return cls(**values)
        except ConfigError as error:
            lines = str(error).split("\n")
            raise ConfigError("\n".join(f"{shown_path(path)}: {x}" for x in lines)) from None

    def to_json(self, path: StrPath) -> None:
        """Writes a file, whole or not at all.

        Args:
            path: Where to. An existing file is replaced.

        Raises:
            OSError: The place cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_text_atomically(path, f"{text}\n")


class PrecisionRule(ConfigSection):
    """What to do with the layers that a pattern, a type, or both select.

    A rule hits a layer if the layer or an ancestor matches `layers`, and the layer or an ancestor matches
    `layer_type`. Of several rules that set the same key for a layer the last one wins; a key given as null takes
    back what earlier rules said about it.

    Example:
        >>> from deepseek_hpf import PrecisionRule
        >>> PrecisionRule(layers="decoder/*", layer_type="Dense", policy="float32").to_dict()
        {'layers': 'decoder/*', 'layer_type': 'Dense', 'policy': 'float32'}
    """

    layers: Pattern | None = None
    """Case-sensitive shell-style pattern over the layer's path: `*` (also crosses `/`), `?`, `[abc]`, `[!abc]`."""
    layer_type: Pattern | None = None
    """Name of the layer's class, exactly, e.g. "Dense"."""
    policy: PolicyName | None = None
    """Dtype policy of the layers; "auto" is what the hardware does best, whatever the file's own policy is."""
    backward: DTypeName | None = None
    """Dtype in which the gradients of the layers are computed."""
    activations: ActivationStorage | None = None
    """How the layers keep what they need for the backward pass; null keeps it as computed."""
    kernel: bool | None = None
    """Whether the layers may use a fused kernel."""

    @field_validator("layer_type")
    @classmethod
    def _is_a_class_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            expected = 'the bare name of a class, e.g. "Dense"; patterns belong to layers'
            raise PydanticCustomError("class_name", "{expected}", {"expected": expected})
        return name

    @model_validator(mode="after")
    def _selects_and_sets(self) -> Self:
        if self.layers is None and self.layer_type is None:
            raise _incomplete("layers or layer_type, which say where the rule applies", self)
        if not self.model_fields_set - {"layers", "layer_type"}:
            raise _incomplete("policy, backward, activations or kernel, which say what to do", self)
        return self


class LossScaleConfig(ConfigSection):
    """How the loss scale moves: grows after finite steps, backs off at overflows, stays within its bounds.

    Example:
        >>> from deepseek_hpf.config import LossScaleConfig
        >>> LossScaleConfig(growth_steps=500).replace(initial_scale=1024).initial_scale
        1024.0
    """

    initial_scale: Positive | None = 2.0**15
    """Scale at the first step; null turns scaling off (guard, clipping and counters remain)."""
    growth_steps: Count = 2000
    """Finite steps in a row after which the scale grows."""
    growth_factor: Positive = 2.0
    """What the scale is multiplied by then; greater than 1."""
    backoff_factor: Positive = 0.5
    """What the scale is multiplied by at an overflow; between 0 and 1."""
    min_scale: Positive = 1.0
    """Floor of the scale."""
    max_scale: Positive = 2.0**24
    """Ceiling of the scale."""
    hysteresis: Count = 1
    """The n-th overflow in a row backs off; 1 is at once, as Keras."""

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        # In float32 1 + 1e-9 is 1: such a factor would never move the scale.
        if _float32(self.growth_factor) <= 1:
            raise _disagrees("growth_factor", self.growth_factor, "a number greater than 1")
        if _float32(self.backoff_factor) >= 1:
            raise _disagrees("backoff_factor", self.backoff_factor, "a number between 0 and 1")
        if self.min_scale > self.max_scale:
            expected = f"at most max_scale, which is {self.max_scale:g}"
            raise _disagrees("min_scale", self.min_scale, expected)
        initial = self.initial_scale
        if initial is not None and not self.min_scale <= initial <= self.max_scale:
            bounds = f"[{self.min_scale:g}, {self.max_scale:g}]"
            default = "" if "initial_scale" in self.model_fields_set else " (the default)"
            expected = f"null or a number within [min_scale, max_scale] = {bounds}{default}"
            raise _disagrees("initial_scale", initial, expected)
        return self


class GlobalNormConfig(ConfigSection):
    """Clips the norm of all gradients together."""

    kind: Literal["global_norm"] = "global_norm"
    """Which clipping."""
    max_norm: Positive
    """Largest global norm that is left as it is."""

    def model_post_init(self, _: object) -> None:
        """The kind is always written: it tells the sections of the union apart."""
        self.model_fields_set.add("kind")


class ValueConfig(ConfigSection):
    """Clips each number of a gradient."""

    kind: Literal["value"] = "value"
    """Which clipping."""
    limit: Positive
    """Largest magnitude of a number in a gradient."""

    def model_post_init(self, _: object) -> None:
        """As for `GlobalNormConfig`."""
        self.model_fields_set.add("kind")


class AdaptiveConfig(ConfigSection):
    """Clips each unit's gradient relative to the norm of its weights, as NFNets do."""

    kind: Literal["adaptive"] = "adaptive"
    """Which clipping."""
    ratio: Positive
    """Largest ratio of a unit's gradient norm to its weight norm."""

    def model_post_init(self, _: object) -> None:
        """As for `GlobalNormConfig`."""
        self.model_fields_set.add("kind")


class AnomalyConfig(ConfigSection):
    """Clips a gradient norm that is an outlier of its own running statistics."""

    kind: Literal["anomaly"] = "anomaly"
    """Which clipping."""
    z: Positive = 3.0
    """Standard deviations of the log-norm above its mean from which a norm is an outlier."""

    def model_post_init(self, _: object) -> None:
        """As for `GlobalNormConfig`."""
        self.model_fields_set.add("kind")


Clipping = Annotated[
    GlobalNormConfig | ValueConfig | AdaptiveConfig | AnomalyConfig, Field(discriminator="kind")
]


class DynamicConfig(ConfigSection):
    """Which controller moves layers between precisions while training runs.

    A later version adds a controller's settings as keys of this section, each with a default; a file of this
    version then still loads.
    """

    controller: ControllerName = "threshold"
    """Name of the controller."""


class PrecisionConfig(ConfigSection):
    """The whole configuration file. All keys are optional.

    Example:
        >>> from deepseek_hpf import PrecisionConfig
        >>> config = PrecisionConfig(policy="mixed_float16", clipping={"kind": "global_norm", "max_norm": 1})
        >>> config.loss_scale.initial_scale, config.clipping.max_norm
        (32768.0, 1.0)
        >>> PrecisionConfig(policy="mixed_bfloat61")
        Traceback (most recent call last):
        deepseek_hpf.errors.ConfigError: policy: expected one of "auto", "float32", "float64", "float16", \
"bfloat16", "mixed_float16", "mixed_bfloat16". Received: policy="mixed_bfloat61". Did you mean "mixed_bfloat16"?
    """

    policy: PolicyName = "auto"
    """Dtype policy of the model; "auto" is what the hardware does best."""
    rules: Annotated[tuple[PrecisionRule, ...], Field(strict=False, max_length=10_000)] = ()
    """Exceptions by layer, from the general to the particular: of several that match, the last one wins."""
    kernels: bool = True
    """Whether fused kernels may be used."""
    jit_compile: bool | None = None
    """Whether the training step is compiled by XLA; null leaves the model's own setting."""
    loss_scale: LossScaleConfig = Field(default_factory=LossScaleConfig)
    """Loss scaling, for float16."""
    clipping: Clipping | None = None
    """Gradient clipping, after unscaling."""
    master_weights: bool = False
    """Whether a model whose variables are low precision is trained on float32 copies of them."""
    dynamic: DynamicConfig | None = None
    """Precision that changes while training runs."""

    @model_validator(mode="before")
    @classmethod
    def _without_schema_key(cls, values: Any) -> Any:
        """Editors find the schema by the key "$schema"; it says nothing to us."""
        if isinstance(values, dict) and "$schema" in values:
            return {key: value for key, value in values.items() if key != "$schema"}
        return values

    @field_validator("rules", mode="before")
    @classmethod
    def _a_list(cls, rules: object) -> object:
        if not isinstance(rules, list | tuple):
            expected = "a list of rules"
            raise PydanticCustomError("rules", "{expected}", {"expected": expected})
        return rules

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Returns the JSON Schema (draft 2020-12) of the file, for editors and other programs.

        Returns:
            The schema as a dict. It cannot say what holds between numbers, e.g. that `initial_scale` lies within
            its bounds.
        """
        schema = cls.model_json_schema()
        schema["properties"] = {
            "$schema": {"type": "string", "description": "Where this schema is; ignored."},
            **schema["properties"],
        }
        select = [{"required": ["layers"]}, {"required": ["layer_type"]}]
        schema["$defs"]["PrecisionRule"]["anyOf"] = select
        return {"$schema": DIALECT, **schema}


def _float32(number: float) -> float:
    """The nearest float32."""
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)


def _disagrees(key: str, received: object, expected: str) -> PydanticCustomError:
    """A number that is fine by itself but not beside the others."""
    context = {"key": key, "received": received, "expected": expected}
    return PydanticCustomError("disagrees", "{expected}", context)


def _incomplete(expected: str, rule: PrecisionRule) -> PydanticCustomError:
    """A rule without one of its halves."""
    given = ", ".join(sorted(rule.model_fields_set)) or "no key"
    context = {"expected": f"at least one of {expected}; received only {given}"}
    return PydanticCustomError("incomplete", "{expected}", context)
