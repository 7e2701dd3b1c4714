"""Rules over modules: how what operations save for the backward pass is kept."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.scheduling.rules import RuleField
from deepseek_hpf.storage.kept_count import PACKING
from deepseek_hpf.storage.saved_tensors_torch import SavedTensors
from deepseek_hpf.torch.regions import Regions


class StorageRegions(Regions):
    """Where one `with` block has saved tensors packed.

    Parameters are never packed, tensors under 4 KiB neither, and those that hold infinities or NaN
    are kept whole. A tensor that several modules save is packed once.

    Args:
        rules: Their `activations` counts; other keys have no meaning here.
        entry: The `with` block.
    """

    field: RuleField = "activations"

    def __init__(self, rules: Sequence[PrecisionRule], entry: Any):
        super().__init__(rules, entry)
        self._known: dict[str, dict[Any, Any]] = {storage: {} for storage in PACKING}

    def _value(self, found: "tuple[Any, int] | None", module: torch.nn.Module) -> Any:
        """What packs; where a rule is taken back, or asks for what there is not, nothing."""
        storage = None if found is None else found[0]
        if storage not in PACKING:
            return None
        held = [t for t in (*module.parameters(), *module.buffers()) if not t.requires_grad]
        return SavedTensors(storage, frozen=held, known=self._known[storage])

    def _region(self, value: Any) -> ExitStack:
        with ExitStack() as region:
            region.enter_context(_as_it_is() if value is None else value.scope())
            return region.pop_all()


def _as_it_is() -> Any:
    """Takes a module out of the region around it."""
    return torch.autograd.graph.saved_tensors_hooks(_left, lambda tensor: tensor)


def _left(tensor: torch.Tensor) -> torch.Tensor:
    # Detached: a result that refers to its own operation would never be freed.
    return tensor if tensor.is_leaf else tensor.detach()
