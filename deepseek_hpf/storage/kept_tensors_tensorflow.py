"""Which tensors of a TensorFlow graph wait for the backward pass in which form."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from deepseek_hpf.storage.backward_graph_tensorflow import BackwardGraph, Kept
from deepseek_hpf.storage.cheap_operations_tensorflow import CheapOperations
from deepseek_hpf.storage.packed_tensors_tensorflow import (
    BITS,
    Form,
    Packed,
    Whole,
    pack_mask,
    pack_values,
)
from deepseek_hpf.storage.stored_call import Settings
from deepseek_hpf.storage.tensor_origin_tensorflow import (
    is_held_by_the_caller,
    noted,
    source_of,
    values_of,
)

# Of these inputs of these operations nothing but a comparison matters.
_COMPARED: dict[tuple[str, int], Callable[[tf.Tensor], tf.Tensor]] = {
    ("ReluGrad", 1): lambda x: x > 0,
    ("LeakyReluGrad", 1): lambda x: x > 0,
    ("Relu6Grad", 1): lambda x: (x > 0) & (x < 6),
}
# These look for the places of equal values, or take what only they can read.
_EXACT = {
    *("MaxPoolGrad", "MaxPoolGradV2", "MaxPool3DGrad", "CudnnRNNBackprop", "CudnnRNNBackpropV3"),
    *("Equal", "NotEqual", "Greater", "GreaterEqual", "Less", "LessEqual"),
}
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_TOLD = "_deepseek_hpf_kept"


@dataclass(frozen=True)
class _LastRestored:
    """As the layer behind has restored it just before, if it has.

    Args:
        form: How it is kept.
        told: Where the restored tensor is found.
    """

    form: Form
    told: dict[Any, Any]

    def restore(self, after: tf.Tensor) -> tf.Tensor:
        """Makes the tensor again."""
        last = self.told.get("last")
        return self.form.restore(after) if last is None or last.graph is not after.graph else last


class KeptTensors:
    """The forms of what the backward pass of a computation needs.

    What several computations of one graph keep is packed once, and what one of them keeps whole is
    whole for all. The forms are chosen while the gradients are put into the graph, from the last
    computation to the first: a ReLU finds that its result is kept by the layer after it.

    Args:
        backward: The backward pass.
        inputs: Of the computation.
        settings: How.
        owns_arguments: Whether nobody else holds the arguments of the function that is traced.
    """

    def __init__(
        self,
        backward: BackwardGraph,
        inputs: Collection[tf.Tensor],
        settings: Settings,
        owns_arguments: bool = False,
    ) -> None:
        self._settings = settings
        self._owns_arguments = owns_arguments
        self._opaque = _CALLS if backward.called_types & _EXACT else set()
        tensors = [kept.tensor for kept in backward.kept.values()]
        most = max(map(values_of, tensors), default=0)
        self._cheap = CheapOperations(
            inputs, settings.smallest, most, is_exact=settings.storage not in BITS
        )
        self._values: dict[str, tf.Tensor] = {}
        self._forms: dict[str, Form] = {}
        self._sources: dict[int, Form] = {}
        self._choose(backward.kept)

    @property
    def forms(self) -> list[Form]:
        """What is in memory for the backward pass, small tensors left out; some maybe twice."""
        found = [*self._forms.values(), *self._sources.values()]
        return [form.form if isinstance(form, _LastRestored) else form for form in found]

    @property
    def is_whole(self) -> bool:
        """Whether all of it is kept as it is."""
        forms = [*self._forms.values(), *self._sources.values()]
        themselves = all(id(source_of(x)[0]) in self._sources for x in self._values.values())
        return themselves and all(isinstance(form, Whole) for form in forms)

    def restored(self, after: tf.Tensor) -> dict[str, tf.Tensor]:
        """The tensors, in the graph at hand.

        Args:
            after: As for `Packed.restore`.

        Returns:
            By names.
        """
        found = {name: form.restore(after) for name, form in self._forms.items()}

        def value(source: tf.Tensor) -> tf.Tensor | None:
            form = self._sources.get(id(source))
            if form is None:
                return None
            self._told(source)["last"] = restored = form.restore(after)
            return restored

        computed = self._cheap.again(self._values.values(), value, after)
        return {**found, **dict(zip(self._values, computed, strict=True))}

    def _choose(self, kept: Mapping[str, Kept]) -> None:
        compared: dict[str, Kept] = {}
        for name, each in kept.items():
            source = source_of(each.tensor)[0]
            if self._is_left(each.tensor, source):
                self._forms[name] = Whole(each.tensor)
            elif self._is_exact(each):
                self._forms[name] = Whole(each.tensor)
                self._told(source)["form"] = Whole(source)
            elif len(each.uses) == 1 and each.uses <= set(_COMPARED):
                compared[name] = each
            else:
                self._values[name] = each.tensor
        for key, source in self._cheap.fewest(self._values.values()).items():
            self._sources[key] = self._form(source)
        for name, each in compared.items():
            self._forms[name] = self._compared_form(each)

    def _is_left(self, tensor: tf.Tensor, source: tf.Tensor) -> bool:
        return (
            not (tensor.dtype.is_floating or tensor.dtype == tf.bool)
            or self._cheap.is_left(tensor)
            or "is part" in self._told(source)
            or (is_held_by_the_caller(source) and not self._owns_arguments)
        )

    def _is_exact(self, kept: Kept) -> bool:
        return any(
            name in _EXACT | self._opaque or (name == "FusedBatchNormGradV3" and place != 1)
            for name, place in kept.uses
        )

    def _form(self, source: tf.Tensor) -> Form:
        told = self._told(source)
        if "form" not in told:
            if source.dtype == tf.bool:
                told["form"] = self._packed(pack_mask(source, tf.bool))
            elif self._settings.storage in BITS:
                packed = pack_values(source, self._settings.storage, self._settings.seed)
                told["form"] = self._packed(packed)
            else:
                told["form"] = Whole(source)
        return told["form"]

    def _compared_form(self, kept: Kept) -> Form:
        source = source_of(kept.tensor)[0]
        told = self._told(source)
        known = told.get("form")
        if isinstance(known, Whole):
            return Whole(kept.tensor)
        # A zero's code is a zero's only.
        if isinstance(known, Packed) and source.op.type == "Relu" and source is kept.tensor:
            return _LastRestored(known, told)
        (use,) = kept.uses
        if use not in told:
            told[use] = self._packed(pack_mask(_COMPARED[use](kept.tensor), kept.tensor.dtype))
        return told[use]

    def _packed(self, form: Packed) -> Packed:
        for part in form.parts:
            self._told(part)["is part"] = True
        return form

    def _told(self, tensor: tf.Tensor) -> dict[Any, Any]:
        """What computations of the same graph and settings have said about a tensor."""
        settings = (self._settings.storage, self._settings.seed, id(tensor))
        return noted(tensor.graph, _TOLD).setdefault(settings, {"tensor": tensor})
