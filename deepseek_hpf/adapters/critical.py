"""The layers that are kept in float32 unless a rule says otherwise, and how."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import keras

from deepseek_hpf.adapters.output import output_producers
from deepseek_hpf.adapters.walk import WalkedLayer, children

# A final matrix product of more elements than this stays low: a classifier's head (2048 x 1000)
# costs nothing in float32, a language model's (768 x 30522) is a good part of the step.
LARGE_HEAD_ELEMENTS = 2**21
SOFTMAXES = (keras.activations.softmax, keras.activations.log_softmax)
_ACTIVATED_LAST = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)

Treatment = Literal["float32", "result", "activation", "back"]


@dataclass(frozen=True)
class Critical:
    """A layer that low precision harms.

    Args:
        reason: Why.
        treatment: `"float32"`: the whole layer. `"result"`: it stays low, its result is cast.
            `"activation"`: it stays low, its result is cast and the activation runs in float32.
            `"back"`: the layer in float32, its result cast to what `owner` computes in.
        owner: The layer that uses the result.
    """

    reason: str
    treatment: Treatment = "float32"
    owner: keras.Layer | None = None


def critical_layers(model: keras.Model, walked: Iterable[WalkedLayer]) -> dict[int, Critical]:
    """Finds the layers to keep out of low precision: softmax, group normalization, the outputs.

    Batch and layer normalization are not among them: Keras computes those in float32 whatever their
    policy is. Neither is the softmax of a fused attention, for the same reason.

    Args:
        model: The model.
        walked: Its layers.

    Returns:
        `id(layer)` to what to do with it.
    """
    walked = list(walked)
    at = {w.path: w.layer for w in walked}
    found = {}
    for w in walked:
        critical = _by_kind(w.layer, at.get(w.parent or ""))
        if critical is not None:
            found[id(w.layer)] = critical
    found.update(_outputs(model))
    return found


def without_float32(layer: keras.Layer, critical: Critical) -> Critical:
    """What is left to do for a layer whose variables forbid float32: its result, its activation.

    Args:
        layer: The layer.
        critical: What would be done.

    Returns:
        What can be done.
    """
    if critical.treatment != "float32":
        return critical
    return replace(critical, treatment=_cast_of(layer))


def _by_kind(layer: keras.Layer, parent: keras.Layer | None) -> Critical | None:
    if isinstance(layer, keras.layers.Softmax):
        if parent is None or isinstance(parent, keras.Model | keras.layers.Wrapper):
            return Critical("softmax")
        return Critical(f"softmax inside {type(parent).__name__}", "back", parent)
    if isinstance(layer, keras.layers.GroupNormalization):
        return Critical("group normalization")
    if isinstance(layer, keras.layers.Attention):
        return Critical("its softmax is part of it")
    if isinstance(parent, keras.layers.RNN | keras.layers.StackedRNNCells):
        return None  # a recurrence has one dtype for its state
    if any(getattr(layer, "activation", None) is softmax for softmax in SOFTMAXES):
        return _head(layer, "softmax activation")
    return None


def _outputs(model: keras.Model) -> dict[int, Critical]:
    found = {}
    for producer in output_producers(model) or []:
        if not producer.is_layer:
            continue
        critical = _head(producer.operation, "the model's output")
        found[id(producer.operation)] = critical
        for layer in producer.around:
            if isinstance(layer, keras.layers.Wrapper):
                whole = critical.treatment == "float32"
                found[id(layer)] = Critical(critical.reason, "float32" if whole else "result")
    return found


def _head(layer: keras.Layer, reason: str) -> Critical:
    """How a layer whose result has to be float32 gets there at little cost."""
    size = sum(math.prod(weight.shape) for weight in layer.weights)
    if not children(layer) and size <= LARGE_HEAD_ELEMENTS:
        return Critical(reason)
    return Critical(f"{reason}: computed low, its result cast", _cast_of(layer))


def _cast_of(layer: keras.Layer) -> Treatment:
    return "activation" if isinstance(layer, _ACTIVATED_LAST) else "result"
