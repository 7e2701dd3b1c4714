"""Decides the policy of every layer: rules first, then what is critical, then the policy."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.adapters.critical import Critical, critical_layers, without_float32
from deepseek_hpf.adapters.layer_dtype import is_low, reason_to_leave, truthful_policy
from deepseek_hpf.adapters.report import OverrideRow
from deepseek_hpf.adapters.saved import is_saved
from deepseek_hpf.adapters.walk import WalkedLayer, rule_nodes, walk
from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.policy import MixedPrecisionPolicy
from deepseek_hpf.scheduling.rules import RuleField, RuleResolution, resolve_rules

OriginalPolicy = Callable[[keras.Layer], keras.DTypePolicy]


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer.

    Args:
        walked: The layer.
        row: The decision in words.
        critical: How it is kept from harm by low precision; None where nothing is to be done.
        harmed: Whether a rule puts it in low precision although it is critical.
    """

    walked: WalkedLayer
    row: OverrideRow
    critical: Critical | None
    harmed: bool = False

    @property
    def layer(self) -> keras.Layer:
        """The layer."""
        return self.walked.layer


@dataclass(frozen=True)
class Draft:
    """All decisions on a model, before any is carried out.

    Args:
        decisions: One for each layer, parents before children.
        plan: The same as a value.
        model_policy: Name of the policy for the model itself; None to leave it.
        resolution: Which rule hit what.
    """

    decisions: list[Decision]
    plan: PrecisionPlan
    model_policy: str | None
    resolution: RuleResolution

    @property
    def is_built(self) -> bool:
        """Whether all layers are there: one that is not built may still make some."""
        return all(d.layer.built for d in self.decisions)


def draft(model: keras.Model, policy: MixedPrecisionPolicy, original: OriginalPolicy) -> Draft:
    """Decides everything, and changes nothing.

    Args:
        model: The model.
        policy: The policy with its configuration.
        original: Tells what policy a layer had before ours was applied to it the first time.

    Returns:
        The decisions.
    """
    walked = walk(model)
    resolution = resolve_rules(policy.config.rules, rule_nodes(walked))
    deciding = _Deciding(model, walked, policy, original, resolution)
    decisions = [deciding.of(w) for w in walked]
    plan = {d.walked.path: _layer_plan(d, resolution) for d in decisions}
    return Draft(decisions, PrecisionPlan(plan), deciding.of_model(decisions), resolution)


def setting(resolution: RuleResolution, walked: WalkedLayer, field: RuleField) -> Any:
    """What the rules say about a layer that may be in several places: the last rule wins.

    Args:
        resolution: Which rule hits what.
        walked: The layer.
        field: The key of the rule.

    Returns:
        `(value, rule index)`, or None.
    """
    said = [resolution.setting(path, field) for path in walked.paths]
    return max((s for s in said if s is not None), key=lambda s: s[1], default=None)


class _Deciding:
    def __init__(
        self,
        model: keras.Model,
        walked: list[WalkedLayer],
        policy: MixedPrecisionPolicy,
        original: OriginalPolicy,
        resolution: RuleResolution,
    ):
        self._model = model
        self._target = policy.name
        self._original = original
        self._resolution = resolution
        self._critical = critical_layers(model, walked)
        ordinary = [w.layer for w in walked if id(w.layer) not in self._critical]
        self._own = own_policy(model, [w.layer for w in walked], ordinary, original)
        self._at = {w.path: w for w in walked}
        self._after: dict[str | None, str] = {None: policy.name}
        self._compute: dict[str | None, str] = {None: policy.compute_dtype}
        self._saved: dict[str | None, bool] = {None: True}

    def of(self, walked: WalkedLayer) -> Decision:
        """Decides on a layer; parents have to come before their children."""
        layer, critical, harmed, rule = walked.layer, None, False, None
        after, reason = layer.dtype_policy.name, reason_to_leave(layer)
        if reason is None:
            wanted, rule, reason = self._wanted(walked)
            after, note = truthful_policy(layer, wanted)
            found = self._critical.get(id(layer)) if is_low(_compute_dtype(after)) else None
            harmed = found is not None and rule is not None
            if found is not None and not harmed:
                critical, after, note, reason = self._kept_from_harm(layer, found, after, note)
            reason = f"{reason}; {note}" if note else reason
            self._compute[walked.path] = _compute_dtype(after)
        else:
            self._compute[walked.path] = layer.compute_dtype
        row = OverrideRow(
            path=walked.path,
            class_name=walked.class_name,
            before=layer.dtype_policy.name,
            after=after,
            rule=rule,
            reason=reason,
            saved=self._note_saved(walked, after),
            result_dtype=self._result_dtype(walked, critical),
        )
        return Decision(walked, row, critical, harmed)

    def _kept_from_harm(
        self, layer: keras.Layer, critical: Critical, after: str, note: str | None
    ) -> tuple[Critical, str, str | None, str]:
        if critical.treatment in ("float32", "back"):
            after, note = truthful_policy(layer, "float32")
        if is_low(_compute_dtype(after)):
            critical = without_float32(layer, critical)
        return critical, after, note, critical.reason

    def _note_saved(self, walked: WalkedLayer, after: str) -> bool:
        parent = self._at[walked.parent].layer if walked.parent else self._model
        saved = self._saved[walked.parent] and is_saved(parent, after, self._after[walked.parent])
        self._after[walked.path], self._saved[walked.path] = after, saved
        return saved and not is_container(walked.layer)

    def _wanted(self, walked: WalkedLayer) -> tuple[str, int | None, str]:
        ruled = setting(self._resolution, walked, "policy")
        if ruled is not None:
            name = MixedPrecisionPolicy().name if ruled[0] == "auto" else ruled[0]
            return name, ruled[1], "a rule"
        given = self._original(walked.layer).name
        if given != self._own and not is_container(walked.layer):
            return given, None, f"has a dtype of its own, other than the model's {self._own}"
        return self._target, None, "the policy"

    def _result_dtype(self, walked: WalkedLayer, critical: Critical | None) -> str | None:
        if critical is None or critical.treatment == "float32":
            return None
        if critical.treatment == "back":
            return self._compute[walked.parent]
        return "float32"

    def of_model(self, decisions: list[Decision]) -> str | None:
        """The policy of the model itself."""
        if reason_to_leave(self._model) is not None:
            return None
        if isinstance(self._model, keras.Sequential) and not self._model.built and decisions:
            # Until it has an input layer it casts what it is given to its own compute dtype: a
            # float32 first layer would get inputs that have been rounded.
            return decisions[0].row.after
        return truthful_policy(self._model, self._target)[0]


def own_policy(
    model: keras.Model,
    layers: list[keras.Layer],
    ordinary: list[keras.Layer],
    original: OriginalPolicy,
) -> str:
    """Name of the policy that a model was made under: layers with another one were given it.

    It is the model's own policy. Where that is float32 it may be so because Keras does not save the
    policy of a functional model. What the layers have that were made without a `dtype` decides
    then; in a model made from its config, where all have one, what most ordinary layers have, and
    not float32 in a tie.

    Args:
        model: The model.
        layers: Its layers.
        ordinary: Those of them that are not in float32 by default.
        original: Tells what policy a layer was made with.

    Returns:
        The name.
    """
    own = str(original(model).name)
    if own != "float32":
        return own
    inherited = Counter(original(x).name for x in _deciding(layers) if _was_given_no_dtype(x))
    if inherited:
        return str(inherited.most_common(1)[0][0])
    names = Counter(original(layer).name for layer in _deciding(ordinary))
    full = names.pop(own, 0)
    most = names.most_common(1)
    return str(most[0][0]) if most and most[0][1] >= full else own


def _deciding(layers: list[keras.Layer]) -> list[keras.Layer]:
    return [x for x in layers if not is_container(x) and reason_to_leave(x) is None]


def _was_given_no_dtype(layer: keras.Layer) -> bool:
    """Whether a layer surely took the global policy: Keras keeps what it was constructed with."""
    constructed_with = getattr(layer, "_auto_config", None)
    return constructed_with is not None and constructed_with.config.get("dtype") is None


def is_container(layer: keras.Layer) -> bool:
    """Whether a layer computes nothing but what its layers compute.

    Args:
        layer: The layer.

    Returns:
        True for functional and sequential models.
    """
    return isinstance(layer, keras.Sequential) or hasattr(layer, "_operations")


def compute_dtypes(decisions: list[Decision], model_policy: str | None) -> set[str]:
    """The dtypes in which a model computes once the decisions are carried out.

    Args:
        decisions: The decisions.
        model_policy: Name of the policy of the model itself.

    Returns:
        Names of dtypes.
    """
    names = {d.row.after for d in decisions if reason_to_leave(d.layer) is None}
    left = {d.layer.compute_dtype for d in decisions if reason_to_leave(d.layer) is not None}
    return left | {_compute_dtype(n) for n in names | ({model_policy} if model_policy else set())}


def _layer_plan(decision: Decision, resolution: RuleResolution) -> LayerPlan:
    found = setting(resolution, decision.walked, "activations")
    said = {} if found is None else {"activations": found[0]}
    return LayerPlan(policy=decision.row.after, **said)


def _compute_dtype(policy_name: str) -> str:
    return str(keras.DTypePolicy(policy_name).compute_dtype)
