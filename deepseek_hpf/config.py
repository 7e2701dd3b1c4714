"""The JSON configuration: which precision where, the loss scale, clipping, masters.

Frozen and keyword-only. What is wrong, in a file or in Python, is one `ConfigError` that names
the key.
"""

import struct
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic.json_schema import GenerateJsonSchema

from deepseek_hpf.config_dynamic import DynamicConfig as DynamicConfig
from deepseek_hpf.config_numbers import FLOAT32_MAX as FLOAT32_MAX
from deepseek_hpf.config_numbers import FLOAT32_TINY as FLOAT32_TINY
from deepseek_hpf.config_numbers import INT32_MAX as INT32_MAX
from deepseek_hpf.config_numbers import Count, Positive, above_underflow
from deepseek_hpf.config_section import ConfigSection as ConfigSection
from deepseek_hpf.config_wording import expects

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PolicyName = Literal[
    "auto", "float32", "float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16"
]
BackwardDTypeName = Literal["float32"]
ActivationStorage = Literal["int8", "int4", "sparse", "recompute"]
MASTER_FORMS = (True, False, "split", "stochastic")
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]


def _known_form(value: object) -> object:
    """One line for what neither side of the union takes."""
    if not isinstance(value, bool | str) or value not in MASTER_FORMS:
        raise expects('true or false, "split" or "stochastic"')
    return value


MasterWeights = Annotated[bool | Literal["split", "stochastic"], BeforeValidator(_known_form)]


class PrecisionRule(ConfigSection):
    """What to do with the layers that a pattern, a type, or both select.

    A rule hits a layer if the layer or an ancestor matches `layers`, and the layer or an ancestor
    matches `layer_type`. Of several rules that give the same key for a layer the last one wins; a
    key given as null takes back what earlier rules said about it.

    Example:
        >>> from deepseek_hpf import PrecisionRule
        >>> PrecisionRule(layers="decoder/*", layer_type="Dense", policy="float32").to_dict()
        {'layers': 'decoder/*', 'layer_type': 'Dense', 'policy': 'float32'}
    """

    layers: Pattern | None = None
    """Case-sensitive shell-style pattern over the layer's path: * (also crosses /), ?, [abc]."""
    layer_type: Pattern | None = None
    """Name of the layer's class, exactly, e.g. "Dense"."""
    policy: PolicyName | None = None
    """Dtype policy of the layers; "auto" is what the hardware does best."""
    backward: BackwardDTypeName | None = None
    """Dtype in which Dense, EinsumDense and convolution layers that compute in 16 bits compute
    their gradients; those of the weights are never rounded to 16 bits."""
    activations: ActivationStorage | None = None
    """How the layers keep what their backward pass needs; null keeps it as computed."""
    kernel: bool | None = None
    """Whether the layers may use a fused kernel."""

    @field_validator("layer_type")
    @classmethod
    def _is_a_class_name(cls, name: str | None) -> str | None:
        if name is not None and not name.isidentifier():
            raise expects('the bare name of a class, e.g. "Dense" (patterns belong to "layers")')
        return name

    @model_validator(mode="after")
    def _selects_and_sets(self) -> Self:
        given = ", ".join(n for n in type(self).model_fields if n in self.model_fields_set)
        if self.layers is None and self.layer_type is None:
            raise expects(
                '"layers" or "layer_type", which say where a rule applies; '
                f"received only: {given or 'nothing'}",
                whole=True,
            )
        if not self.model_fields_set - {"layers", "layer_type"}:
            raise expects(
                '"policy", "backward", "activations" or "kernel", which say what a rule does; '
                f"received only: {given}",
                whole=True,
            )
        return self


class LossScaleConfig(ConfigSection):
    """How the loss scale moves: it grows after finite steps and backs off at overflows.

    It starts at `initial_scale` and never leaves `[min_scale, max_scale]`.

    Example:
        >>> from deepseek_hpf.config import LossScaleConfig
        >>> LossScaleConfig(growth_steps=500).replace(initial_scale=1024).initial_scale
        1024.0
    """

    initial_scale: Positive | None = 2.0**15
    """Scale at the first step; null turns scaling off (guard, clipping and counters remain)."""
    growth_steps: Count = 2000
    """Finite steps in a row after which the scale grows."""
    growth_factor: Annotated[float, Field(gt=1, le=FLOAT32_MAX)] = 2.0
    """What the scale is multiplied by then; greater than 1."""
    backoff_factor: Annotated[float, Field(gt=0, lt=1), AfterValidator(above_underflow)] = 0.5
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
            raise self._disagrees("growth_factor", "a number greater than 1 (in float32)")
        if _float32(self.backoff_factor) >= 1:
            raise self._disagrees("backoff_factor", "a number between 0 and 1 (in float32)")
        if self.min_scale > self.max_scale:
            raise self._disagrees("min_scale", f"at most max_scale, {self.max_scale}")
        initial = self.initial_scale
        if initial is not None and not self.min_scale <= initial <= self.max_scale:
            bounds = f"[{self.min_scale}, {self.max_scale}]"
            default = "" if "initial_scale" in self.model_fields_set else "; set it as well"
            expected = f"null or a number within [min_scale, max_scale], {bounds}{default}"
            raise self._disagrees("initial_scale", expected)
        return self

    def _disagrees(self, key: str, expected: str) -> Exception:
        """A number that is fine by itself, but not beside the others."""
        return expects(expected, key=key, received=getattr(self, key))


class _ClippingSection(ConfigSection):
    """A clipping rule; `kind` tells which, and so is always written."""

    def model_post_init(self, _: object) -> None:
        self.model_fields_set.add("kind")


class GlobalNormConfig(_ClippingSection):
    """Clips the norm of all gradients together."""

    kind: Literal["global_norm"] = "global_norm"
    """Which clipping."""
    max_norm: Positive
    """Largest global norm that is left as it is."""


class ValueConfig(_ClippingSection):
    """Clips each number of a gradient."""

    kind: Literal["value"] = "value"
    """Which clipping."""
    limit: Positive
    """Largest magnitude of a number that is left as it is."""


class AdaptiveConfig(_ClippingSection):
    """Clips each unit's gradient relative to the norm of its weights, as NFNets do."""

    kind: Literal["adaptive"] = "adaptive"
    """Which clipping."""
    ratio: Positive
    """Largest ratio of a unit's gradient norm to its weight norm."""


class AnomalyConfig(_ClippingSection):
    """Clips a gradient norm that is an outlier of its own running statistics."""

    kind: Literal["anomaly"] = "anomaly"
    """Which clipping."""
    z: Positive = 6.0
    """Standard deviations above the mean of the log-norm from which a norm is an outlier."""


Clipping = Annotated[
    GlobalNormConfig | ValueConfig | AdaptiveConfig | AnomalyConfig, Field(discriminator="kind")
]


class ActivationsConfig(ConfigSection):
    """How much the layers may keep for the backward pass, whichever way each keeps it."""

    memory_goal: Annotated[float, Field(gt=0, le=1)]
    """Share of the bytes that may be kept, of what is kept as computed."""


class PrecisionConfig(ConfigSection):
    """The configuration of mixed-precision training. All keys are optional.

    Example:
        >>> from deepseek_hpf import PrecisionConfig
        >>> config = PrecisionConfig(clipping={"kind": "global_norm", "max_norm": 1})
        >>> config.policy, config.clipping.max_norm, config.loss_scale.initial_scale
        ('auto', 1.0, 32768.0)
        >>> PrecisionConfig.from_dict({"loss_scale": {"growth_step": 100}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        deepseek_hpf.errors.ConfigError: loss_scale.growth_step: unknown key. ...
    """

    policy: PolicyName = "auto"
    """Dtype policy of the model; "auto" is what the hardware does best."""
    rules: Annotated[tuple[PrecisionRule, ...], Field(strict=False, max_length=10_000)] = ()
    """Exceptions by layer, from the general to the particular: the last one that matches wins."""
    kernels: bool = True
    """Whether fused kernels may be used."""
    jit_compile: bool | None = None
    """Whether XLA compiles the training step; null leaves the model's own setting."""
    loss_scale: LossScaleConfig = Field(default_factory=LossScaleConfig)
    """Loss scaling, which float16 needs."""
    clipping: Clipping | None = None
    """Gradient clipping, after unscaling."""
    master_weights: MasterWeights = False
    """Whether variables of low precision are trained by way of float32 copies; "split" keeps of
    them only the bits that bfloat16 lacks, "stochastic" keeps none and rounds at random."""
    activations: ActivationsConfig | None = None
    """How much the layers that no rule gives a storage may keep; followed by
    `callbacks.MemoryGoal`."""
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
    def _is_a_list(cls, rules: object) -> object:
        if not isinstance(rules, list | tuple):
            raise expects("a list of rules")
        return rules

    @field_validator("loss_scale", mode="before")
    @classmethod
    def _is_not_null(cls, section: object) -> object:
        if section is None:
            raise expects('an object; {"initial_scale": null} turns scaling off')
        return section

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Returns the JSON Schema (draft 2020-12) of the file, for editors and other programs.

        It cannot express what holds between numbers, e.g. that `initial_scale` lies within its
        bounds; `from_json` checks that too.

        Returns:
            The schema as a dict.
        """
        schema = cls.model_json_schema(schema_generator=_UntitledSchema)
        where = {"type": "string", "description": "Where this schema is; otherwise ignored."}
        schema["properties"] = {"$schema": where, **schema["properties"]}
        definitions = schema["$defs"]
        halves = [{"layers", "layer_type"}, {"policy", "backward", "activations", "kernel"}]
        definitions["PrecisionRule"]["allOf"] = [
            {"anyOf": [{"required": [key]} for key in sorted(half)]} for half in halves
        ]
        for section in _ClippingSection.__subclasses__():
            definition = definitions[section.__name__]
            definition["required"] = ["kind", *definition.get("required", [])]
        return {"$schema": DIALECT, **schema}


class _UntitledSchema(GenerateJsonSchema):
    """Leaves out pydantic's titles of keys, which say nothing that the keys do not."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _float32(number: float) -> float:
    """The nearest float32."""
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)
