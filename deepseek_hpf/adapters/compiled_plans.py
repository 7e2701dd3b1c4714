"""One set of compiled functions for each precision plan, so that a plan seen before is at hand."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.errors import PrecisionError
from deepseek_hpf.plan import PrecisionPlan

FUNCTIONS = ("train_function", "test_function", "predict_function")
STEPS = ("train_step", "test_step")


@dataclass
class _Compiled:
    """What a plan is run by: the compiled functions, and the steps that they were made from."""

    steps: dict[str, Callable[..., Any]]
    functions: dict[str, Any] = field(default_factory=dict)


class CompiledPlans:
    """Switches a model between precision plans, also between two steps of `fit`.

    `fit` reads `model.train_function` anew at every step. Each plan keeps the functions that were
    compiled under it: going back to one retraces nothing. A plan that is new is traced when its
    functions are first called; evaluation and prediction follow. `model.compile` forgets them all.

    On JAX every plan has training and test steps of its own, for `jax.jit` runs the old trace of a
    function for as long as that lives.

    Args:
        model: A built, compiled model.
        plan: The plan that it runs under now.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.compiled_plans import CompiledPlans
        >>> from deepseek_hpf.plan import LayerPlan, PrecisionPlan
        >>> dense = keras.layers.Dense(1, name="dense")
        >>> model = keras.Sequential([keras.Input((4,)), dense])
        >>> model.compile("sgd", "mse")
        >>> plans = CompiledPlans(model, PrecisionPlan({"dense": LayerPlan(policy="float32")}))
        >>> plans.switch(PrecisionPlan({"dense": LayerPlan(policy="mixed_bfloat16")}))
        >>> dense.compute_dtype
        'bfloat16'
        >>> plans.close()
        >>> dense.compute_dtype
        'float32'
    """

    def __init__(self, model: keras.Model, plan: PrecisionPlan):
        self.plan = plan
        self._model = model
        self._layers = {walked.path: walked.layer for walked in walk(model)}
        self._compiled_as = model._compile_config
        self._first_steps = {name: getattr(model, name) for name in STEPS}
        self._added_steps = [name for name in STEPS if name not in vars(model)]
        self._first_plan = plan
        self._seen = {plan: _Compiled(dict(self._first_steps))}
        # (id(layer), name) -> the policy of that name that it had: going back is to the same object
        self._policies: dict[tuple[int, str], Any] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def switch(self, plan: PrecisionPlan) -> None:
        """Goes to a plan; the next step runs under it.

        Args:
            plan: The plan. Of its layers those count that it treats differently from the present
                one.

        Raises:
            PrecisionError: The plan names a layer that the model does not have, or differs in more
                than the dtype policies; the model is as it was.
        """
        if plan == self.plan:
            return
        changes = self._changes(plan)
        self._forget_if_compiled_anew()
        self._keep()
        for layer, policy in changes:
            self._set_policy(layer, policy)
        self.plan = plan
        self._set(self._seen.setdefault(plan, _Compiled(self._own_steps())))

    def close(self) -> None:
        """Goes back to the first plan, and forgets the others."""
        self.switch(self._first_plan)
        self._seen = {self.plan: self._seen[self.plan]}
        for name in self._added_steps:
            vars(self._model).pop(name, None)

    def _changes(self, plan: PrecisionPlan) -> list[tuple[keras.Layer, str]]:
        changes = []
        for path in plan.changes_from(self.plan):
            new, old = plan.get(path), self.plan.get(path)
            layer = self._layers.get(path)
            if layer is None or new is None or old is None or new.policy is None:
                raise PrecisionError(
                    f"Expected a plan for the layers of this model, each with a policy. Received: "
                    f"{path!r}: {new!r} after {old!r}. Make it by `.replace` from the present plan."
                )
            if new.replace(policy=old.policy) != old:
                raise PrecisionError(
                    f"Expected a plan that differs in dtype policies only. Received: {path!r}: "
                    f"{new!r} after {old!r}. Use `apply_policy` between two trainings."
                )
            changes.append((layer, new.policy))
        return changes

    def _set_policy(self, layer: keras.Layer, policy: str) -> None:
        present = layer.dtype_policy
        self._policies[id(layer), present.name] = present
        known = self._policies.get((id(layer), policy))
        layer.dtype_policy = keras.DTypePolicy(policy) if known is None else known

    def _forget_if_compiled_anew(self) -> None:
        if self._model._compile_config is not self._compiled_as:
            self._compiled_as = self._model._compile_config
            steps = self._seen[self.plan].steps
            self._seen = {self.plan: _Compiled(steps)}

    def _keep(self) -> None:
        """Keeps the functions of the present plan; some were made only since it began."""
        self._seen[self.plan].functions = {n: getattr(self._model, n, None) for n in FUNCTIONS}

    def _set(self, compiled: _Compiled) -> None:
        model = self._model
        if keras.backend.backend() == "jax":
            for name, step in compiled.steps.items():
                # Past the tracking of layers and variables, which a function is not.
                object.__setattr__(model, name, step)
        for name in FUNCTIONS:
            setattr(model, name, compiled.functions.get(name))
        if model.train_function is None:
            model.make_train_function()  # the running `fit` does not make it again

    def _own_steps(self) -> dict[str, Callable[..., Any]]:
        return {name: _passing_on(step) for name, step in self._first_steps.items()}


def _passing_on(step: Callable[..., Any]) -> Callable[..., Any]:
    """A function object of its own that does the same."""

    def own_step(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return own_step
