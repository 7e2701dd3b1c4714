"""The walk over a model: every layer once, each under a path that is its own."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import keras

from deepseek_hpf.scheduling.rules import LayerNode

# A layer that many parents share is entered this often at most: sub-models that share sub-models
# that share … have exponentially many paths.
MAX_PLACES = 8


@dataclass
class WalkedLayer:
    """A layer of a model, and where it is.

    Args:
        path: Names from the top-level layer down, joined by `/`, e.g. `"encoder/block_1/conv"`. The
            name of the model itself is not part of it. Siblings of one name are told apart by a
            suffix: `"conv"`, `"conv:2"`.
        layer: The layer.
        parent: Path of the layer that holds it; None at the top.
        other_places: `(path, parent)` of every further place where the layer, being shared, is.
    """

    path: str
    layer: keras.Layer
    parent: str | None
    other_places: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def class_name(self) -> str:
        """Name of the layer's own class."""
        return type(self.layer).__name__

    @property
    def paths(self) -> tuple[str, ...]:
        """All places of the layer, the first one first."""
        return (self.path, *(path for path, _ in self.other_places))

    def nodes(self) -> Iterator[LayerNode]:
        """What rules see of the layer: one node for each of its places.

        Yields:
            The node of `path` first.
        """
        yield LayerNode(self.path, self.class_name, self.parent)
        for path, parent in self.other_places:
            yield LayerNode(path, self.class_name, parent)


def walk(model: keras.Model) -> list[WalkedLayer]:
    """Lists the layers of a model, parents before children, each layer once.

    Functional, sequential and subclassed models, composite layers, wrappers and RNN cells are
    walked alike; siblings come in the order of `model.layers` where the model has one, else in the
    order in which they were made. Input layers have nothing to decide and are left out, as is the
    model itself. The paths do not depend on whether the model is built (a layer that makes its
    children when it is built has none before) nor on `layer.path`, which Keras does not keep
    unique. They use the layers' names: automatic ones count per process, so a rule is best written
    for a layer that has been given a name.

    Args:
        model: The model, built or not.

    Returns:
        The layers.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.walk import walk
        >>> block = keras.Sequential([keras.layers.Dense(2, name="fc")], name="block")
        >>> [w.path for w in walk(keras.Sequential([keras.Input((2,)), block], name="m"))]
        ['block', 'block/fc']
    """
    return _Walk().of(model)


def rule_nodes(walked: Iterable[WalkedLayer]) -> list[LayerNode]:
    """What `resolve_rules` needs to know of the layers, shared ones in all their places.

    Args:
        walked: The layers.

    Returns:
        The nodes.
    """
    return [node for layer in walked for node in layer.nodes()]


class _Walk:
    def __init__(self) -> None:
        self._found: dict[int, WalkedLayer] = {}
        self._around: set[int] = set()

    def of(self, model: keras.Model) -> list[WalkedLayer]:
        self._enter(model, None)
        return list(self._found.values())

    def _enter(self, layer: keras.Layer, path: str | None) -> None:
        self._around.add(id(layer))
        for name, child in _named(children(layer)):
            if id(child) in self._around:  # it holds the layer that holds it
                continue
            child_path = name if path is None else f"{path}/{name}"
            if self._place(child, child_path, path):
                self._enter(child, child_path)
        self._around.discard(id(layer))

    def _place(self, layer: keras.Layer, path: str, parent: str | None) -> bool:
        seen = self._found.get(id(layer))
        if seen is None:
            self._found[id(layer)] = WalkedLayer(path, layer, parent)
            return True
        if len(seen.paths) >= MAX_PLACES:
            return False
        seen.other_places.append((path, parent))
        return True


def children(layer: keras.Layer) -> list[keras.Layer]:
    """The layers that a layer holds directly, input layers left out, each once.

    Args:
        layer: A layer or model.

    Returns:
        The children, in the order of `layer.layers` where there is one.
    """
    ordered = list(layer.layers) if isinstance(layer, keras.Model) else []
    # Keras has no public list of what a layer holds; this one backs `layer.weights`.
    held = layer._flatten_layers(include_self=False, recursive=False)
    unique = {id(child): child for child in [*ordered, *held]}
    return [c for c in unique.values() if not isinstance(c, keras.layers.InputLayer)]


def _named(layers: list[keras.Layer]) -> Iterator[tuple[str, keras.Layer]]:
    """Layers with their names, made unique among siblings."""
    taken = {layer.name for layer in layers}
    count: Counter[str] = Counter()
    for layer in layers:
        name = layer.name
        count[name] += 1
        if count[name] > 1:
            while (name := f"{layer.name}:{count[layer.name]}") in taken:
                count[layer.name] += 1
            taken.add(name)
        yield name, layer
