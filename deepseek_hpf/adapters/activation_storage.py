"""How layers keep what their backward passes need: which can keep less, and the wrapper for it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras

from deepseek_hpf.adapters.hooking import CallHook
from deepseek_hpf.adapters.planning import Decision, Draft, setting
from deepseek_hpf.adapters.running_fit import local_of_fit
from deepseek_hpf.adapters.walk import WalkedLayer
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.errors import PrecisionError
from deepseek_hpf.storage.stored_call import SMALLEST, Settings, StoredCalls, stored_calls

COMPRESSED = "_deepseek_hpf_compressed"  # attribute of a model whose storage has been chosen
SHOWN = 5  # layers that a line names


class StorageChooser:
    """Decides on the layers of one model, parents before children.

    Args:
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.
    """

    def __init__(self, seed: int = 0, smallest: int = SMALLEST):
        self._seed, self._smallest = seed, smallest
        self._settings: dict[str, Settings] = {}
        self._recomputed: dict[str, str] = {}  # path of a layer -> of that which is run again

    def refusal(self, walked: WalkedLayer, storage: str) -> str | None:
        """Why a layer keeps what it keeps.

        Args:
            walked: The layer.
            storage: `"int8"`, `"int4"`, `"sparse"` or `"recompute"`.

        Returns:
            None where it can keep less.
        """
        layer, calls = walked.layer, stored_calls(storage)
        around = self._recomputed.get(walked.parent or "")
        if around is not None:
            self._recomputed[walked.path] = around
            return f"{around!r}, which holds it, is recomputed"
        if isinstance(layer, keras.Model):
            return "its layers are taken one by one"
        if not layer.built:
            return "it is not built"
        if calls is None:
            return f"{keras.backend.backend()} has nothing for it"
        refusal = calls.refusal(layer, storage)
        if refusal is None and storage == "recompute":
            self._recomputed[walked.path] = walked.path
        return refusal

    def hook(self, layer: keras.Layer, storage: str) -> CallHook:
        """The wrapper of a layer that can keep less.

        Args:
            layer: The layer.
            storage: As of `refusal`.

        Returns:
            The wrapper.

        Raises:
            PrecisionError: The layer cannot.
        """
        calls = stored_calls(storage)
        if calls is None:
            raise PrecisionError(
                f"Expected a layer without `refusal`. Received: {layer.name!r} under "
                f"{keras.backend.backend()}, which has nothing for {storage!r}."
            )
        settings = self.settings(storage)
        return CallHook(layer, ("activations", storage), partial(_wrapped, calls, layer, settings))

    def settings(self, storage: str) -> Settings:
        """One for all layers, so that each tensor is packed once.

        Args:
            storage: As of `refusal`.

        Returns:
            Always the same.
        """
        fresh = Settings(storage, self._seed, self._smallest)
        return self._settings.setdefault(storage, fresh)


def keeps_less(layer: keras.Layer) -> bool:
    """Whether a layer has such a wrapper.

    Args:
        layer: The layer.

    Returns:
        True until it is taken off.
    """
    return hasattr(layer.call, "_deepseek_hpf_stores")


def _wrapped(calls: StoredCalls, layer: keras.Layer, settings: Settings, call: Any) -> Any:
    wrapper: Any = calls.wrap(layer, call, settings)
    wrapper._deepseek_hpf_stores = settings.storage
    return wrapper


@dataclass(frozen=True)
class StorageChoice:
    """What has been decided on a layer that a rule hits.

    Args:
        path: The layer's path.
        storage: What the rule asks for.
        rule: Its index.
        hook: The wrapper; None where it cannot be had.
        refusal: Why not.
    """

    path: str
    storage: str
    rule: int
    hook: CallHook | None
    refusal: str | None


def choose_storage(
    found: Draft, has_own_call: Callable[[keras.Layer], bool]
) -> list[StorageChoice]:
    """Decides on the layers that rules give `activations`.

    Args:
        found: The decisions on precision.
        has_own_call: Whether somebody else has put a `call` on a layer.

    Returns:
        One choice for each such layer.
    """
    chooser, choices = StorageChooser(), []
    for decision in found.decisions:
        said = setting(found.resolution, decision.walked, "activations")
        if said is None:
            continue
        (storage, rule), layer = said, decision.layer
        refusal = chooser.refusal(decision.walked, storage)
        if has_own_call(layer) and keeps_less(layer):
            refusal = "its activations are compressed already"
        hook = chooser.hook(layer, storage) if refusal is None else None
        choices.append(StorageChoice(decision.walked.path, storage, rule, hook, refusal))
    return choices


def with_storage(found: Draft, choices: list[StorageChoice]) -> Draft:
    """Derives the decisions with the storage in rows and plan.

    Args:
        found: The decisions.
        choices: The storage.

    Returns:
        The same decisions, with what can be had.
    """
    by_path = {choice.path: choice for choice in choices}
    decisions = [_with_choice(d, by_path.get(d.walked.path)) for d in found.decisions]
    refused = {c.path: found.plan[c.path].replace(activations=None) for c in choices if c.refusal}
    return replace(found, decisions=decisions, plan=found.plan.replace(refused))


def _with_choice(decision: Decision, choice: StorageChoice | None) -> Decision:
    if choice is None:
        return decision
    had = choice.storage if choice.refusal is None else None
    row = replace(decision.row, activations=had, activations_refusal=choice.refusal)
    return replace(decision, row=row)


def storage_lines(choices: list[StorageChoice]) -> list[str]:
    """What the report says about storage.

    Args:
        choices: The storage.

    Returns:
        One line for each kind, one for each reason to do without.
    """
    had: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for choice in choices:
        if choice.refusal is None:
            had[choice.storage].append(choice.path)
        else:
            refused[choice.refusal].append(choice.path)
    lines = [f"{storage}: in {_listed(paths)}" for storage, paths in had.items()]
    return [*lines, *(f"{why}; so in {_listed(paths)}" for why, paths in refused.items())]


def goal_warnings(model: keras.Model, config: PrecisionConfig) -> list[str]:
    """What the user should know about a memory goal, which a policy alone does not follow.

    Args:
        model: The model.
        config: The configuration.

    Returns:
        A sentence, unless there is no goal or something follows it.
    """
    if config.activations is None or vars(model).get(COMPRESSED):
        return []
    callbacks = local_of_fit(model, "callbacks") or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    if any(getattr(callback, "follows_memory_goal", False) for callback in callbacks):
        return []
    return [
        '"activations": {"memory_goal": …} is followed by `callbacks.MemoryGoal(config)`, which '
        "measures on the first batch, and by `memory.compress_activations(model, memory_goal=…, "
        "batch=…)`: use one of them, or leave the key out."
    ]


def _listed(items: list[str]) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN} more"
