"""Blocks: groups of neighbouring layers that change their precision together."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from deepseek_hpf.errors import ConfigError

_NUMBER = re.compile(r"_\d+(?=[/_.:]|$)")


@dataclass(frozen=True)
class Block:
    """Layers that change their precision together.

    Args:
        name: Their common path, or those of the first and the last.
        layers: Their paths.
        critical: Those among them that low precision harms first: normalization, residual
            additions, softmax.
    """

    name: str
    layers: tuple[str, ...]
    critical: tuple[str, ...] = ()


def blocks_of(paths: Sequence[str], most: int, critical: Iterable[str] = ()) -> tuple[Block, ...]:
    """Groups layers into blocks.

    Layers are grouped by as many leading parts of their paths as keep to `most` groups. Where even
    the first part makes too many, as in a flat model, neighbouring groups become one block.

    Args:
        paths: Paths of the layers, in the order of the model.
        most: Largest number of blocks, at least 1.
        critical: Paths of the critical layers.

    Returns:
        The blocks, in the order of their first layer.

    Raises:
        ConfigError: `most` is below 1.

    Example:
        >>> from deepseek_hpf.scheduling.blocks import blocks_of
        >>> paths = ["stem", "encoder/a", "encoder/b", "head"]
        >>> [block.name for block in blocks_of(paths, most=3)]
        ['stem', 'encoder', 'head']
        >>> [block.name for block in blocks_of(paths, most=2)]
        ['stem', 'encoder..head']
    """
    if most < 1:
        raise ConfigError(f"expected at least 1 block. Received: most={most}")
    groups = _by_leading_parts(paths, most)
    marked = frozenset(critical)
    return tuple(_block(part, marked) for part in _neighbours(groups, most))


def have_names(blocks: Iterable[Block], names: Iterable[str]) -> bool:
    """Whether blocks are those of these names, as far as names tell.

    Numbers that Keras appends do not count: `dense_1` is `dense` when the same model is made anew.

    Args:
        blocks: The blocks.
        names: Names, e.g. of a saved state.

    Returns:
        True if they agree one by one.

    Example:
        >>> from deepseek_hpf.scheduling.blocks import Block, have_names
        >>> have_names([Block("dense_1", ("dense_1",))], ["dense"])
        True
    """
    own = [block.name for block in blocks]
    return [_NUMBER.sub("", name) for name in own] == [_NUMBER.sub("", name) for name in names]


def _by_leading_parts(paths: Sequence[str], most: int) -> list[list[str]]:
    deepest = max((path.count("/") + 1 for path in paths), default=1)
    found: list[list[str]] = []
    for depth in range(1, deepest + 1):
        groups = _grouped(paths, depth)
        if found and len(groups) > most:
            break
        found = groups
    return found


def _grouped(paths: Sequence[str], depth: int) -> list[list[str]]:
    return [list(own) for _, own in groupby(paths, key=lambda path: path.split("/")[:depth])]


def _neighbours(groups: list[list[str]], most: int) -> list[list[list[str]]]:
    """Cuts a sequence into at most `most` runs whose lengths differ by at most one."""
    count = min(most, len(groups))
    cuts = [i * len(groups) // count for i in range(count + 1)] if count else [0]
    return [groups[start:end] for start, end in pairwise(cuts)]


def _block(groups: list[list[str]], critical: frozenset[str]) -> Block:
    names = [_common_path(group) for group in (groups[0], groups[-1])]
    paths = tuple(path for group in groups for path in group)
    name = names[0] if len(groups) == 1 else "..".join(names)
    return Block(name, paths, tuple(path for path in paths if path in critical))


def _common_path(paths: Sequence[str]) -> str:
    """The leading parts that all paths share; the first path where they share none."""
    shared = []
    for parts in zip(*(path.split("/") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared) or paths[0]
