"""Islands: layers of one dtype between layers of another, with a cast on the way in and out."""

from collections.abc import Iterator
from typing import Any

from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.profiler.evidence import Evidence, exact_rule, policy_for
from deepseek_hpf.profiler.findings import Conflict
from deepseek_hpf.profiler.sightings import Passage, Target


def island_conflicts(evidence: Evidence) -> Iterator[Conflict]:
    """Finds casts that are taken back, and casts between two low dtypes.

    Args:
        evidence: What was seen.

    Yields:
        One conflict for each layer of an island.
    """
    for passage in evidence.passages:
        if is_low(passage.before) and is_low(passage.after) and passage.before != passage.after:
            yield _between_low(evidence, passage)
    seen: set[str] = set()
    for target in _leaves(evidence):
        if target.path in seen:
            continue
        region = _region(evidence, target)
        seen.update(member.path for member in region)
        yield from _of_region(evidence, region)


def _leaves(evidence: Evidence) -> list[Target]:
    return [t for t in evidence.layers if t.computed and not evidence.is_composite(t)]


def _dtype(target: Target) -> str:
    return target.computed[0] if target.computed else ""


def _region(evidence: Evidence, start: Target) -> list[Target]:
    """The layers that pass tensors on to each other without a cast."""
    found = {start.path: start}
    queue = [start]
    while queue:
        member = queue.pop()
        for passage in evidence.into(member.path) + evidence.out_of(member.path):
            other = passage.source if passage.target == member.path else passage.target
            target = evidence.target(other)
            if target is None or other in found or passage.before != passage.after:
                continue
            if target.is_layer and evidence.is_composite(target):
                continue
            found[other] = target
            queue.append(target)
    return list(found.values())


def _of_region(evidence: Evidence, region: list[Target]) -> Iterator[Conflict]:
    paths = {member.path for member in region}
    composite = {t.path for t in evidence.layers if evidence.is_composite(t)}
    entries = [p for m in region for p in evidence.into(m.path) if p.source not in paths]
    exits = [
        p for m in region for p in evidence.out_of(m.path) if p.target not in paths | composite
    ]
    around = {p.before for p in entries} | {p.after for p in exits}
    inner = _dtype(region[0])
    if not entries or not exits or len(around) != 1 or inner in around or not inner:
        return
    (outer,) = around
    if any(not p.source for p in entries) or is_low(outer) == is_low(inner):
        return
    neighbours = [evidence.target(p.target) for p in exits]
    neighbours += [evidence.target(p.source) for p in entries]
    if any(evidence.is_critical(t) for t in [*region, *neighbours]):
        return
    yield from (_conflict(evidence, m, region, entries + exits, outer) for m in region)


def _conflict(
    evidence: Evidence, member: Target, region: list[Target], casts: list[Passage], outer: str
) -> Conflict:
    inner = _dtype(member)
    heavy = any(len(w.shape) > 1 for m in region if m.is_layer for w in m.operation.weights)
    kind = "float32_island" if is_low(outer) else "low_island" if heavy else "cast_round_trip"
    return Conflict(
        kind,
        member.path,
        type(member.operation).__name__,
        (outer, inner, outer),
        f"{outer} is cast to {inner} for {len(region)} layer(s) and straight back",
        evidence.cast_bytes(casts),
        evidence.passage_seconds(casts),
        _rules(region, outer),
        f"compute {'it' if len(region) == 1 else 'them'} in {outer}, as the layers around",
        "waste",
    )


def _between_low(evidence: Evidence, passage: Passage) -> Conflict:
    target = evidence.target(passage.target)
    behind = _region(evidence, target) if target is not None else []
    return Conflict(
        "low_to_low",
        passage.target,
        "Cast",
        (passage.before, passage.after),
        f"{passage.before} is cast to {passage.after}: it loses the range of one and the "
        "resolution of the other",
        evidence.cast_bytes([passage]),
        evidence.passage_seconds([passage]),
        _rules(behind, passage.before),
        f"compute what is in {passage.after} there in {passage.before}, as the layer before it",
    )


def _rules(region: list[Target], dtype: str) -> tuple[dict[str, Any], ...]:
    """One for each layer: with a single one in another dtype the cast would only move on."""
    layers = [member for member in region if member.is_layer]
    return tuple(exact_rule(m.path, policy_for(dtype, m.operation)) for m in layers)
