"""The wrappers around calls that are in place on one model: casts, fused kernels, storage."""

from dataclasses import dataclass
from typing import Any

import keras

from deepseek_hpf.adapters.activation_storage import choose_storage, storage_lines, with_storage
from deepseek_hpf.adapters.backward_choice import (
    backward_lines,
    backward_warnings,
    choose_backward,
    installed,
    settled_backward,
)
from deepseek_hpf.adapters.hooking import CallHook, any_low, wanted_hooks
from deepseek_hpf.adapters.kernel_choice import (
    choose_kernels,
    kernel_lines,
    kernel_warnings,
    settled,
    with_kernels,
)
from deepseek_hpf.adapters.own_call import set_call
from deepseek_hpf.adapters.planning import Draft, compute_dtypes
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.config import PrecisionConfig


@dataclass(frozen=True, kw_only=True)
class CallsSet:
    """What has come of setting the calls of a model.

    Args:
        found: The decisions, kernels among them.
        kernels: The report's lines on kernels.
        activations: The report's lines on what keeps its activations in fewer bytes.
        operations: The report's lines on operations that are no layers.
        warnings: What the user should know.
        changed: Whether any call is another one than before.
    """

    found: Draft
    kernels: list[str]
    activations: list[str]
    operations: list[str]
    warnings: list[str]
    changed: bool


class WrappedCalls:
    """Puts wrappers on a model's objects, each once, and takes off what is wanted no more.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        # id(target) -> (target, kind, wrapper)
        self._hooks: dict[int, tuple[Any, tuple[Any, ...], Any]] = {}

    def set(self, found: Draft, config: PrecisionConfig, log: UndoLog) -> CallsSet:
        """Brings kernels to layers, and casts to critical ones; the policies are set already.

        Args:
            found: The decisions on precision.
            config: The configuration.
            log: Where to write how to take it back.

        Returns:
            What has come of it.

        Raises:
            ConfigError: A rule wants float32 gradients where nothing can have them.
        """
        dtypes = compute_dtypes(found.decisions, found.model_policy)
        casts = wanted_hooks(self._model, found.decisions) if any_low(dtypes) else []
        backward = choose_backward(found, config, self._has_own_call)
        found = settled_backward(found, backward)
        choices = choose_kernels(found, config, self._has_own_call)
        kernels = [choice.hook for choice in choices if choice.hook is not None]
        kernels += [choice.hook for choice in installed(backward)]
        storage = choose_storage(found, self._has_own_call)
        storing = [choice.hook for choice in storage if choice.hook is not None]
        return CallsSet(
            # Around the kernels: what these keep is packed as well.
            changed=self._put(with_kernels(storing, with_kernels(casts, kernels)), log),
            found=with_storage(settled(found, choices), storage),
            activations=storage_lines(storage),
            kernels=[*kernel_lines(choices, config), *backward_lines(backward)],
            operations=[hook.line for hook in casts if hook.line],
            warnings=[*kernel_warnings(choices), *backward_warnings(backward)],
        )

    def forget(self) -> None:
        """Knows of no wrapper any more: they have been taken back by the log."""
        self._hooks.clear()

    def noted(self) -> dict[int, Any]:
        """What `renote` takes, should what follows be taken back.

        Returns:
            A copy of the notes on what is in place.
        """
        return dict(self._hooks)

    def renote(self, noted: dict[int, Any]) -> None:
        """Takes the notes back, not the wrappers.

        Args:
            noted: What `noted` returned.
        """
        self._hooks = noted

    def layers_with_cast_results(self) -> list[keras.Layer]:
        """The layers that compute low and whose results are cast to float32.

        Returns:
            The layers, in no particular order.
        """
        casting = {"result", "activation"}
        hooked = [target for target, kind, _ in self._hooks.values() if kind[0] in casting]
        return [target for target in hooked if isinstance(target, keras.Layer)]

    def _has_own_call(self, layer: keras.Layer) -> bool:
        ours = self._hooks.get(id(layer), (layer, (), None))[2]
        return vars(layer).get("call") is not ours

    def _put(self, hooks: list[CallHook], log: UndoLog) -> bool:
        wanted = {id(hook.target): hook for hook in hooks}
        changed = False
        for key, (target, kind, wrapper) in list(self._hooks.items()):
            in_place = vars(target).get("call") is wrapper
            if in_place and key in wanted and wanted[key].kind == kind:
                del wanted[key]
                continue
            if in_place:
                log.clear_on_instance(target, "call")
            del self._hooks[key]
            changed = True
        for key, hook in wanted.items():
            wrapper = hook.wrap(hook.target.call)
            set_call(log, hook.target, wrapper)
            self._hooks[key] = (hook.target, hook.kind, wrapper)
            changed = True
        return changed
