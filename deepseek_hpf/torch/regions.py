"""Rules over modules: regions of autocast, nested as the modules are called.

A context is not given the model. It sees the outermost module that is called, takes that as the
root of the paths, and puts hooks on the modules that rules hit, as long as the context lasts.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from deepseek_hpf.config import PrecisionRule
from deepseek_hpf.errors import ConfigError
from deepseek_hpf.scheduling.rules import LayerNode, RuleField, RuleResolution, resolve_rules
from deepseek_hpf.torch import entered
from deepseek_hpf.torch.precision import AUTO, POLICIES

# Attribute that holds the model, by class of what wraps it.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
}
LOW = (torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


class Regions:
    """The regions of one `with` block.

    Args:
        rules: Their `policy` counts; other keys have no meaning here.
        entry: The `with` block; the hooks act where it is the innermost.
    """

    field: RuleField = "policy"

    def __init__(self, rules: Sequence[PrecisionRule], entry: Any):
        self._rules = [_with_slashes(rule) for rule in rules if self.field in rule.model_fields_set]
        self._entry = entry
        self._roots: WeakSet[torch.nn.Module] = WeakSet()
        self._resolutions: list[RuleResolution] = []
        self._depth = 0
        self._open: list[tuple[torch.nn.Module, ExitStack]] = []
        self._hooks = ExitStack()

    def watch(self, exits: ExitStack) -> None:
        """Waits for models until `exits` is closed."""
        if not self._rules:
            return
        exits.callback(self._end)
        exits.callback(register_module_forward_pre_hook(self._begins).remove)
        handle = register_module_forward_hook(self._ends, always_call=True)
        exits.callback(handle.remove)

    @torch.compiler.disable
    def _begins(self, module: torch.nn.Module, args: Any) -> Any:
        """Any module is called; the outermost one is a root."""
        if not entered.is_innermost(self._entry):
            return None
        self._depth += 1
        if self._depth > 1 or _unwrapped(module) in self._roots:
            return None
        root = _unwrapped(module)
        self._roots.add(root)
        values = self._hook_modules(root)
        # PyTorch collected this module's own hooks before it called this one.
        if root not in values or root is not module:
            return None
        return self._enter(module, values[root], args, {})[0]

    @torch.compiler.disable
    def _ends(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if entered.is_innermost(self._entry):
            self._depth = max(self._depth - 1, 0)

    def _hook_modules(self, root: torch.nn.Module) -> dict[torch.nn.Module, Any]:
        modules = {name.replace(".", "/"): module for name, module in root.named_modules()}
        resolution = resolve_rules(self._rules, [_node(p, m) for p, m in modules.items()])
        self._resolutions.append(resolution)
        values = {
            module: self._value(resolution.setting(path, self.field), module)
            for path, module in modules.items()
            if path in resolution.winner
        }
        for module, value in values.items():
            self._hook(module, value)
        return values

    def _value(self, found: "tuple[Any, int] | None", module: torch.nn.Module) -> Any:
        """What a rule says; where it is "auto", or taken back, what the context says."""
        if found is None or found[0] == AUTO:
            return self._entry.dtypes
        return dict.fromkeys(self._entry.dtypes, POLICIES[found[0]])

    def _hook(self, module: torch.nn.Module, value: Any) -> None:
        @torch.compiler.disable
        def enter(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
            if entered.is_innermost(self._entry):
                return self._enter(module, value, args, kwargs)
            return None

        before = module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
        after = module.register_forward_hook(self._leave, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)

    def _enter(self, module: torch.nn.Module, value: Any, args: Any, kwargs: Any) -> Any:
        self._open.append((module, self._region(value)))
        if self.field != "policy" or set(value.values()) != {torch.float32}:
            return args, kwargs
        # Without autocast, inputs and float32 weights have to agree.
        return _widened(args), _widened(kwargs)

    def _region(self, value: Any) -> ExitStack:
        return entered.autocast(value)

    @torch.compiler.disable
    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if entered.is_innermost(self._entry) and self._open and self._open[-1][0] is module:
            self._open.pop()[1].close()

    def _end(self) -> None:
        while self._open:
            self._open.pop()[1].close()
        self._hooks.close()
        unmatched = [{rule.index for rule in found.unmatched} for found in self._resolutions]
        if unmatched and set.intersection(*unmatched):
            logger.warning("%s", self._resolutions[0].warning())


def refuse_policies(rules: Sequence[PrecisionRule]) -> None:
    """Refuses a policy that is none of autocast's.

    Raises:
        ConfigError: A rule has one.
    """
    for policy in _policies(rules):
        if policy not in POLICIES:
            raise ConfigError(
                f"Autocast computes in {', '.join(sorted(POLICIES))}. Received: a rule with "
                f"policy={policy!r}"
            )


def uses_float16(rules: Sequence[PrecisionRule]) -> bool:
    """Whether a rule makes a region of float16, whose gradients need loss scaling."""
    return any(POLICIES[policy] == torch.float16 for policy in _policies(rules))


def _policies(rules: Sequence[PrecisionRule]) -> set[str]:
    return {rule.policy for rule in rules if rule.policy not in (None, AUTO)}


def _with_slashes(rule: PrecisionRule) -> PrecisionRule:
    """PyTorch's paths are written with dots; a file that is Keras's as well has slashes."""
    return rule if rule.layers is None else rule.replace(layers=rule.layers.replace(".", "/"))


def _node(path: str, module: torch.nn.Module) -> LayerNode:
    parent = None if path == "" else path.rpartition("/")[0]
    return LayerNode(path, type(module).__name__, parent)


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    while type(module).__name__ in WRAPPERS:
        module = getattr(module, WRAPPERS[type(module).__name__])
    return module


def _widened(tree: Any) -> Any:
    """The same arguments with tensors of low precision in float32."""
    if isinstance(tree, torch.Tensor):
        return tree.float() if tree.dtype in LOW else tree
    if isinstance(tree, dict):
        return {key: _widened(value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(_widened(value) for value in tree)
    return tree
