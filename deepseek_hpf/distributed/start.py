"""The check at the start: every rank trains under the same configuration, or none does."""

from collections.abc import Iterator, Mapping
from typing import Any

from deepseek_hpf.config_wording import join, shown
from deepseek_hpf.distributed.group import LEADER, Group
from deepseek_hpf.errors import ConfigError

SHOWN = 3  # differences of a rank that are named

MISSING = object()


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the scalars of a JSON value with their key paths.

    Args:
        value: The value.
        path: Key path of the value itself.
    """
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from flat(each, join(path, key))
    elif isinstance(value, list | tuple) and value:
        for index, each in enumerate(value):
            yield from flat(each, f"{path}[{index}]")
    elif path or not isinstance(value, Mapping):
        yield path, value


def differences(leaders: Any, own: Any) -> list[str]:
    """Says where two JSON values differ.

    Args:
        leaders: The value of rank 0.
        own: The other one.

    Returns:
        One phrase for each difference, by key path.

    Example:
        >>> from deepseek_hpf.distributed.start import differences
        >>> differences({"loss_scale": {"growth_steps": 2000}}, {"loss_scale": {"growth_steps": 9}})
        ['loss_scale.growth_steps=9 (rank 0: 2000)']
    """
    theirs, ours = dict(flat(leaders)), dict(flat(own))
    return [
        f"{path}={_shown(ours.get(path, MISSING))} (rank 0: {_shown(theirs.get(path, MISSING))})"
        for path in sorted(theirs.keys() | ours.keys())
        if not _same(theirs.get(path, MISSING), ours.get(path, MISSING))
    ]


def check_alike(group: Group, description: Mapping[str, Any]) -> None:
    """Refuses to train where a rank would do so in another way than the leader.

    Args:
        group: The ranks.
        description: What has to be the same, as a JSON value: the configuration, dtypes, versions.

    Raises:
        ConfigError: A rank differs. It is raised on all ranks, so that none waits for another, and
            names rank and difference.
    """
    found = differences(group.broadcast(description), description)
    lines = [
        f"rank {rank} has {_listed(differing)}"
        for rank, differing in enumerate(group.gather(found))
        if differing
    ]
    if lines:
        raise ConfigError(
            "Expected every rank to train under the configuration of rank "
            f"{LEADER}. Received: {_listed(lines, '; ')}. Start all processes with the same file, "
            "arguments and versions."
        )


def _listed(phrases: list[str], between: str = ", ") -> str:
    hidden = len(phrases) - SHOWN
    more = f"{between}and {hidden} more" if hidden > 0 else ""
    return between.join(phrases[:SHOWN]) + more


def _shown(value: object) -> str:
    return "nothing" if value is MISSING else shown(value)


def _same(one: object, other: object) -> bool:
    """True is no 1 here, and 1 is 1.0, as in the JSON file."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
