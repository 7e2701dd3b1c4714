"""Which rule of the configuration decides what, for every layer of a model."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.patterns import compiled

RuleField = Literal["policy", "backward", "activations", "kernel"]
NEAREST_SOUGHT_FOR = 10  # unmatched rules; finding a near word is quadratic in its length
COMPARED = 200  # characters


@dataclass(frozen=True)
class LayerNode:
    """A layer, as far as rules see it.

    Args:
        path: Its unambiguous path, `"encoder/dense_1"`.
        class_name: Name of its own class, without base classes.
        parent: Path of the layer that holds it; None at the top.
    """

    path: str
    class_name: str
    parent: str | None = None


@dataclass(frozen=True)
class UnmatchedRule:
    """A rule that hits no layer.

    Args:
        index: Its place in the file, from 0.
        rule: The rule.
        nearest_path: Path of the layer that comes nearest to what the rule names; None where there
            is none.
        nearest_type: Class name of that layer.
    """

    index: int
    rule: PrecisionRule
    nearest_path: str | None
    nearest_type: str | None = None

    def __str__(self) -> str:
        words = [f'{k}="{v}"' for k in ("layers", "layer_type") if (v := getattr(self.rule, k))]
        text = f"rules[{self.index}] ({', '.join(words)})"
        if self.nearest_path is None:
            return text
        return f'{text}: the nearest layer is "{self.nearest_path}", a {self.nearest_type}'


class RuleResolution:
    """What `resolve_rules` found.

    Args:
        rules: The rules, in the order of the file.
        hits: For each rule the paths that it hits, in the order of the walk.
        unmatched: The rules that hit nothing.
    """

    def __init__(
        self,
        rules: Sequence[PrecisionRule],
        hits: Sequence[tuple[str, ...]],
        unmatched: Sequence[UnmatchedRule],
    ):
        self.rules = tuple(rules)
        self.hits = tuple(hits)
        self.unmatched = list(unmatched)

    @cached_property
    def winner(self) -> dict[str, int]:
        """Path to the index of the last rule that hits it; paths that no rule hits are absent."""
        return {path: index for index, paths in enumerate(self.hits) for path in paths}

    @cached_property
    def _settings(self) -> dict[str, dict[str, tuple[Any, int]]]:
        settings: dict[str, dict[str, tuple[Any, int]]] = {}
        for index, (rule, paths) in enumerate(zip(self.rules, self.hits, strict=True)):
            given = rule.model_fields_set - {"layers", "layer_type"}
            values = {field: (getattr(rule, field), index) for field in given}
            for path in paths:
                settings.setdefault(path, {}).update(values)
        return settings

    def setting(self, path: str, field: RuleField) -> tuple[Any, int] | None:
        """What the rules say about one thing of one layer; the last rule that gives the key wins.

        A later rule that gives other keys only does not undo an earlier one. A key that is given as
        null takes back what earlier rules said.

        Args:
            path: The layer's path.
            field: `"policy"`, `"backward"`, `"activations"` or `"kernel"`.

        Returns:
            The value and the index of its rule; None if no rule says anything, or the last one took
            it back.
        """
        found = self._settings.get(path, {}).get(field)
        return None if found is None or found[0] is None else found

    def deciding(self, path: str) -> set[int]:
        """The rules of which at least one key decides for a layer, and is not given again later.

        Args:
            path: The layer's path.

        Returns:
            Their indices.
        """
        return {index for _, index in self._settings.get(path, {}).values()}

    def warning(self) -> str | None:
        """One text for all rules that hit nothing.

        Returns:
            The text, or None if every rule hits a layer.
        """
        if not self.unmatched:
            return None
        count = len(self.unmatched)
        head = "1 rule matches no layer" if count == 1 else f"{count} rules match no layer"
        lines = [str(rule) for rule in self.unmatched[:NEAREST_SOUGHT_FOR]]
        if count > len(lines):
            lines.append(f"… and {count - len(lines)} more")
        return f"{head}: {'; '.join(lines)}."


def resolve_rules(rules: Sequence[PrecisionRule], nodes: Iterable[LayerNode]) -> RuleResolution:
    """Finds the layers that each rule hits.

    A rule hits a layer if the layer or an ancestor matches `layers`, and the layer or an ancestor
    matches `layer_type`; what a rule leaves out matches everything.

    Args:
        rules: From the general to the particular.
        nodes: The layers, each with a path of its own.

    Returns:
        The hits, the winners and the rules without a hit.

    Raises:
        ConfigError: Two layers have one path, or a parent is not among the layers.

    Example:
        >>> from deepseek_hpf import PrecisionRule
        >>> from deepseek_hpf.scheduling.rules import LayerNode, resolve_rules
        >>> nodes = [LayerNode("decoder", "Block"), LayerNode("decoder/head", "Dense", "decoder")]
        >>> found = resolve_rules([PrecisionRule(layers="decoder", policy="float32")], nodes)
        >>> found.setting("decoder/head", "policy")
        ('float32', 0)
        >>> typo = PrecisionRule(layers="decoder/haed", policy="float32")
        >>> resolve_rules([typo], nodes).unmatched[0].nearest_path
        'decoder/head'
    """
    tree = _LayerTree(nodes)
    hits = [tree.hit_by(rule) for rule in rules]
    unmatched: list[UnmatchedRule] = []
    for index, (rule, paths) in enumerate(zip(rules, hits, strict=True)):
        if not paths:
            near = tree.nearest_to(rule) if len(unmatched) < NEAREST_SOUGHT_FOR else None
            names = (near.path, near.class_name) if near else (None, None)
            unmatched.append(UnmatchedRule(index, rule, *names))
    return RuleResolution(rules, hits, unmatched)


class _LayerTree:
    """The layers by path, by class and by parent."""

    def __init__(self, nodes: Iterable[LayerNode]):
        self._nodes: dict[str, LayerNode] = {}
        self._of_type: dict[str, list[str]] = {}
        self._children: dict[str, list[str]] = {}
        for node in nodes:
            if node.path in self._nodes:
                raise ConfigError(
                    f"expected a path of its own for each layer. Received twice: {node.path!r}"
                )
            self._nodes[node.path] = node
            self._of_type.setdefault(node.class_name, []).append(node.path)
            if node.parent is not None:
                self._children.setdefault(node.parent, []).append(node.path)
        lost = self._children.keys() - self._nodes.keys()
        if lost:
            raise ConfigError(
                f"expected every parent among the layers. Received: parent={min(lost)!r}"
            )
        self._order = {path: place for place, path in enumerate(self._nodes)}

    def hit_by(self, rule: PrecisionRule) -> tuple[str, ...]:
        """Paths that a rule hits, in the order of the walk."""
        chosen: set[str] | None = None
        if rule.layers is not None:
            chosen = self._with_descendants(self._matching(rule.layers))
        if rule.layer_type is not None:
            typed = self._with_descendants(self._of_type.get(rule.layer_type, []))
            chosen = typed if chosen is None else chosen & typed
        return tuple(sorted(chosen or (), key=self._order.__getitem__))

    def nearest_to(self, rule: PrecisionRule) -> LayerNode | None:
        """The layer whose path, or else class, comes nearest to what the rule names."""
        if rule.layer_type is not None and (rule.layers is None or self._matching(rule.layers)):
            return self._nearest_type(rule)
        path = _nearest(rule.layers or "", self._nodes)
        return self._nodes[path] if path is not None else None

    def _nearest_type(self, rule: PrecisionRule) -> LayerNode | None:
        """The layer of the nearest class, below what `layers` matches if the rule has it."""
        below: Mapping[str, LayerNode] = self._nodes
        if rule.layers is not None:
            below = {p: self._nodes[p] for p in self._with_descendants(self._matching(rule.layers))}
        first_of: dict[str, LayerNode] = {}
        for node in sorted(below.values(), key=lambda node: self._order[node.path]):
            first_of.setdefault(node.class_name, node)
        name = _nearest(rule.layer_type or "", first_of)
        return first_of[name] if name is not None else None

    def _matching(self, pattern: str) -> list[str]:
        """Paths that a pattern matches themselves."""
        matcher = compiled(pattern)
        if matcher.is_literal:
            return [pattern] if pattern in self._nodes else []
        return [path for path in self._nodes if matcher.matches(path)]

    def _with_descendants(self, paths: Iterable[str]) -> set[str]:
        """The paths and everything below them."""
        found: set[str] = set()
        pending = list(paths)
        while pending:
            path = pending.pop()
            if path not in found:
                found.add(path)
                pending.extend(self._children.get(path, ()))
        return found


def _nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar word, however far it is; stars and question marks do not count."""
    plain = word.replace("*", "").replace("?", "")[:COMPARED]
    cut: dict[str, str] = {}
    for candidate in words:
        cut.setdefault(candidate[:COMPARED], candidate)
    near = difflib.get_close_matches(plain, cut, n=1, cutoff=0.0)
    return cut[near[0]] if near else None
