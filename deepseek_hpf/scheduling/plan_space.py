"""The plans that a controller moves among: a base plan with some blocks in float32."""

from collections import Counter
from collections.abc import Sequence

from deepseek_hpf.errors import ConfigError
from deepseek_hpf.plan import LayerPlan, PrecisionPlan
from deepseek_hpf.scheduling.blocks import Block

Levels = tuple[int, ...]
"""For each block one of the three levels below."""

BASE, CRITICAL, FLOAT32 = 0, 1, 2


class PlanSpace:
    """Plans by the level of each block.

    Level 0 is what the base plan says, level 1 has the critical layers of the block in float32,
    level 2 all of them. A layer that is in float32 computes its gradients there as well.

    Args:
        base: The plan without any block promoted.
        blocks: The blocks; they share no layer, and each of their layers is in the plan.

    Raises:
        ConfigError: A layer is in two blocks, or not in the plan.

    Example:
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> from deepseek_hpf.scheduling.blocks import Block
        >>> from deepseek_hpf.scheduling.plan_space import PlanSpace
        >>> low = LayerPlan(policy="mixed_float16")
        >>> space = PlanSpace(PrecisionPlan({"a": low, "b": low}), [Block("a", ("a",))])
        >>> space.plan((2,)).to_dict()
        {'a': {'policy': 'float32'}, 'b': {'policy': 'mixed_float16'}}
    """

    def __init__(self, base: PrecisionPlan, blocks: Sequence[Block]):
        held = Counter(path for block in blocks for path in block.layers)
        wrong = [path for path, count in held.items() if count > 1 or path not in base]
        if wrong:
            raise ConfigError(
                "expected blocks that share no layer and whose layers are in the plan. "
                f"Received: {wrong[0]!r}, in {held[wrong[0]]} blocks."
            )
        self.base = base
        self.blocks = tuple(blocks)

    @property
    def bottom(self) -> Levels:
        """The base plan."""
        return (BASE,) * len(self.blocks)

    @property
    def top(self) -> Levels:
        """Every block in float32."""
        return (FLOAT32,) * len(self.blocks)

    def plan(self, levels: Levels) -> PrecisionPlan:
        """Returns the plan in which each block has its level."""
        wide: list[str] = []
        for block, level in zip(self.blocks, levels, strict=True):
            wide += {BASE: (), CRITICAL: block.critical, FLOAT32: block.layers}[level]
        return in_policy(self.base, "float32", wide)

    def higher(self, block: int, level: int, layer: str | None = None) -> int:
        """The level to which a block is promoted: its critical layers go first.

        Args:
            block: Index of the block.
            level: Its level now.
            layer: Path of the layer at fault, where one is known. One that is not critical needs
                the whole block at once.

        Returns:
            The next level; the highest one stays.
        """
        critical = self.blocks[block].critical
        at_fault = layer is None or layer in critical
        return CRITICAL if level == BASE and critical and at_fault else FLOAT32

    def lower(self, block: int, level: int) -> int:
        """The level to which a block is demoted.

        Args:
            block: Index of the block.
            level: Its level now.

        Returns:
            The level below; the lowest one stays.
        """
        return CRITICAL if level == FLOAT32 and self.blocks[block].critical else BASE

    def block_of(self, layer: str | None) -> int | None:
        """Index of the block that holds a layer, or the layers around it; None if there is none."""
        path = layer or ""
        while path:
            for index, block in enumerate(self.blocks):
                if path in block.layers:
                    return index
            path = path.rpartition("/")[0]
        return None


class BoundedLevels:
    """Keeps the number of distinct plans within a bound, for each one is compiled anew.

    One place is always kept for the plan with every block in float32, so that there is a way up
    from everywhere.

    Args:
        space: The plans.
        most: Largest number of distinct plans, at least 2.
    """

    def __init__(self, space: PlanSpace, most: int):
        if most < 2:
            raise ConfigError(f"expected at least 2 plans. Received: most={most}")
        self.most = most
        self._top = space.top
        self.seen: list[Levels] = [space.bottom]

    def nearest(self, wanted: Levels) -> Levels:
        """Finds the levels to take for those that are wanted, and counts them as seen.

        Args:
            wanted: One level for each block.

        Returns:
            The wanted ones while there is room; then those seen before that have no block lower
            than wanted, and the fewest higher.
        """
        if not self.has_room(wanted):
            known = [*self.seen, self._top]
            wide_enough = [k for k in known if all(a >= b for a, b in zip(k, wanted, strict=True))]
            wanted = min(wide_enough, key=lambda levels: (sum(levels), levels))
        if wanted not in self.seen:
            self.seen.append(wanted)
        return wanted

    def has_room(self, wanted: Levels) -> bool:
        """Whether levels were seen before, or may be new ones."""
        if wanted in self.seen or wanted == self._top:
            return True
        kept = 0 if self._top in self.seen else 1
        return len(self.seen) < self.most - kept


def in_policy(plan: PrecisionPlan, policy: str, paths: Sequence[str]) -> PrecisionPlan:
    """Gives layers another policy, but never a layer that is in float32 a lower one.

    Args:
        plan: The plan to start from.
        policy: Name of the Keras policy.
        paths: Paths of the layers.

    Returns:
        The new plan.
    """
    changed: dict[str, LayerPlan] = {}
    for path in paths:
        layer = plan[path]
        if layer.policy not in (None, policy, "float32", "float64"):
            changed[path] = layer.replace(policy=policy)
    return plan.replace(changed) if changed else plan
