"""What layers keep for their backward passes, under several storages at once."""

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

PACKING = ("sparse", "int8", "int4")
STORAGES = (None, *PACKING)
"""What is counted: as computed, and all that packs."""


@dataclass
class KeptCount:
    """Things that would be in memory, each once, and which layers would keep them.

    One step is run or traced; each layer says of each storage what it would keep under it. A thing
    is known by the object that it is, which has to live as long as the count.

    Args:
        seed: Of the rounding.
        smallest: Bytes of the smallest tensor that is packed.

    Example:
        >>> from deepseek_hpf.storage.kept_count import KeptCount
        >>> count, x, packed = KeptCount(), object(), object()
        >>> count.note("dense", None, x, 400)
        >>> count.note("dense", "int8", packed, 104)
        >>> count.note("relu", None, x, 400)
        >>> count.bytes_of("dense", None), count.bytes_of("relu", "int8"), len(count.sizes)
        (400, 0, 2)
    """

    seed: int = 0
    smallest: int = 4096
    sizes: dict[Hashable, int] = field(default_factory=dict)
    """Bytes by thing."""
    keeps: dict[str, dict[str | None, set[Hashable]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )
    """Things by layer and storage."""
    known: dict[str | None, dict[Any, Any]] = field(
        default_factory=lambda: defaultdict(dict), repr=False
    )
    """For each storage what the layers have packed, as of `Settings`."""
    _alive: dict[int, Any] = field(default_factory=dict, repr=False)

    def note(
        self, layer: str, storage: str | None, thing: Any, size: float, key: Hashable = None
    ) -> None:
        """Says that a layer would keep a thing.

        Args:
            layer: The layer's path.
            storage: Under which storage.
            thing: The object.
            size: Its bytes.
            key: What it is known by, if not by the object, which is held in any case.
        """
        self._alive[id(thing)] = thing
        key = id(thing) if key is None else key
        self.sizes[key] = int(size)
        self.keeps[layer][storage].add(key)

    def bytes_of(self, layer: str, storage: str | None) -> int:
        """The bytes that a layer would keep, those that others keep as well among them."""
        return sum(self.sizes[key] for key in self.keeps[layer][storage])
