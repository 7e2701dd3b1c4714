"""The layers that a memory goal decides on: the outermost that can keep less."""

from dataclasses import dataclass

import keras

from deepseek_hpf.adapters.activation_storage import StorageChooser, keeps_less
from deepseek_hpf.adapters.walk import WalkedLayer, walk
from deepseek_hpf.storage.kept_count import PACKING


@dataclass(frozen=True)
class Unit:
    """A layer that is decided on as a whole, with the layers that it holds.

    Args:
        walked: The layer.
        storages: What it can have.
        reason: Why it is left, where that is decided; empty otherwise.
    """

    walked: WalkedLayer
    storages: tuple[str, ...]
    reason: str = ""


def units(model: keras.Model, chooser: StorageChooser) -> list[Unit]:
    """Lists the outermost layers that can keep less, and those that cannot, with the reason.

    What a layer computes by itself is not to be told from what its layers compute, so that these
    have no storage of their own. Models are no such layers: theirs are taken one by one.

    Args:
        model: The model.
        chooser: What knows which can.

    Returns:
        One for each layer, parents before children.
    """
    found: list[Unit] = []
    around: dict[str, str] = {}
    for walked in walk(model):
        holder = around.get(walked.parent or "")
        if holder is not None:
            around[walked.path] = holder
            found.append(Unit(walked, (), f"{holder!r}, which holds it, decides"))
            continue
        refusals = {storage: chooser.refusal(walked, storage) for storage in PACKING}
        storages = tuple(storage for storage, refusal in refusals.items() if refusal is None)
        if keeps_less(walked.layer):
            around[walked.path] = walked.path
            found.append(Unit(walked, (), "a rule says how it keeps them"))
        elif storages:
            around[walked.path] = walked.path
            found.append(Unit(walked, storages))
        else:
            found.append(Unit(walked, (), refusals["int8"] or ""))
    return found
