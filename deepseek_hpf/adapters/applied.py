"""What has been applied to one model: carried out, kept up, taken back."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, Self

import keras

from deepseek_hpf.adapters.activation_storage import goal_warnings
from deepseek_hpf.adapters.compiled import forget_compiled_functions, remake_compiled_functions
from deepseek_hpf.adapters.guard import install_guard
from deepseek_hpf.adapters.optimizing import set_optimizer
from deepseek_hpf.adapters.planning import Draft, compute_dtypes, draft
from deepseek_hpf.adapters.report import OverrideReport
from deepseek_hpf.adapters.undo import UndoLog
from deepseek_hpf.adapters.wording import warnings_for
from deepseek_hpf.adapters.wrapped_calls import CallsSet, WrappedCalls
from deepseek_hpf.config import PrecisionConfig
from deepseek_hpf.policy import MixedPrecisionPolicy

# In the model's `__dict__`, not tracked by Keras, not saved, collected with the model.
_PLACE = "_deepseek_hpf_applied"


class Applied:
    """The policy that a model runs under, with all that is needed to take it back.

    Args:
        model: The model.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._log = UndoLog()
        # id(layer) -> (layer, the policy it had before ours, ours)
        self._policies: dict[int, tuple[keras.Layer, Any, Any]] = {}
        self._calls = WrappedCalls(model)
        self._uninstall_guard: Callable[[], None] | None = None
        self._policy: MixedPrecisionPolicy | None = None
        self._dynamic = False
        self._report: OverrideReport | None = None
        self._warned: set[str] = set()

    @classmethod
    def to(cls, model: keras.Model) -> Self:
        """What has been applied to a model; nothing, at first.

        Args:
            model: The model.

        Returns:
            The one object of this model.
        """
        found = vars(model).get(_PLACE)
        return found if isinstance(found, cls) else cls(model)

    @staticmethod
    def is_applied(model: keras.Model) -> bool:
        """Whether a policy is applied to a model.

        Args:
            model: The model.

        Returns:
            True from `apply` until `revert`.
        """
        return isinstance(vars(model).get(_PLACE), Applied)

    def apply(
        self, policy: MixedPrecisionPolicy, tuned: str = "", *, dynamic: bool = False
    ) -> OverrideReport:
        """Carries out a policy: all of it or nothing.

        Args:
            policy: The policy.
            tuned: The report's line on a tuned plan; empty where there is none.
            dynamic: Whether a controller will switch plans while the model trains.

        Returns:
            The report.
        """
        before = (self._policy, dict(self._policies), self._calls.noted())
        step = UndoLog()
        self._policy, self._dynamic = policy, dynamic
        try:
            report = self._carry_out(policy, step)
        except BaseException:
            step.undo()
            self._policy, self._policies, noted = before
            self._calls.renote(noted)
            raise
        report.tuned = tuned
        self._log.extend(step)
        vars(self._model)[_PLACE] = self
        self._report = report
        self._warn(report.warnings)
        return report

    def revert(self) -> None:
        """Takes everything back."""
        if vars(self._model).get(_PLACE) is not self:
            return
        del vars(self._model)[_PLACE]
        self._log.undo()
        self._policies.clear()
        self._calls.forget()
        forget_compiled_functions(self._model)

    def on_revert(self, undo: Callable[[], None]) -> None:
        """Adds what has to be taken back before the policy is.

        Args:
            undo: Takes it back; a second call does nothing.
        """
        self._log.record(undo)

    def original_policy(self, layer: keras.Layer) -> Any:
        """The policy that a layer had, or was given by others, before ours.

        Args:
            layer: A layer, or the model.

        Returns:
            The policy.
        """
        _, original, ours = self._policies.get(id(layer), (layer, None, None))
        return original if ours is layer.dtype_policy else layer.dtype_policy

    def layers_with_cast_results(self) -> list[keras.Layer]:
        """The layers that compute low and whose results are cast to float32.

        Returns:
            The layers, in no particular order.
        """
        return self._calls.layers_with_cast_results()

    def _carry_out(self, policy: MixedPrecisionPolicy, log: UndoLog) -> OverrideReport:
        model = self._model
        found = draft(model, policy, self.original_policy)
        model_before = model.dtype_policy.name
        dtypes = compute_dtypes(found.decisions, found.model_policy)
        changed = self._set_policies(found, log)
        calls = self._calls.set(found, policy.config, log)
        found, changed = calls.found, changed | calls.changed
        self._watch_builds(found, log)
        changed_jit, jit_line = self._set_jit(policy, log)
        expected = dtypes | _to_come(found, policy) | self._switched_to(policy.config)
        changed_optimizer, optimizer_line = set_optimizer(
            model, policy.config, scales_loss="float16" in expected, log=log
        )
        changed |= changed_jit or changed_optimizer or self._uninstall_guard is None
        if changed:
            self._renew_guard(log)
            remake_compiled_functions(model, log)
        return OverrideReport(
            rows=[d.row for d in found.decisions],
            policy=policy.name,
            plan=found.plan,
            model=_model_line(model_before, model.dtype_policy.name),
            optimizer=optimizer_line,
            guard="a step with a non-finite gradient changes nothing but the counters",
            jit_compile=jit_line,
            kernels=calls.kernels,
            activations=calls.activations,
            operations=calls.operations,
            warnings=[*self._warnings(found, policy.config), *calls.warnings],
            changed=changed,
            is_complete=found.is_built,
            _revert=self.revert,
        )

    def _finish(self) -> None:
        """Decides on what a layer has made when it was built, before it is called."""
        if vars(self._model).get(_PLACE) is not self or self._policy is None:
            return
        found = draft(self._model, self._policy, self.original_policy)
        self._set_policies(found, self._log)
        calls = self._calls.set(found, self._policy.config, self._log)
        self._watch_builds(found, self._log)
        if self._report is not None:
            self._update(self._report, calls, self._policy)

    def _update(
        self, report: OverrideReport, calls: CallsSet, policy: MixedPrecisionPolicy
    ) -> None:
        found = calls.found
        said = {row.path: row.before for row in report.rows}
        rows = [d.row for d in found.decisions]
        report.rows[:] = [row.with_before(said.get(row.path, row.before)) for row in rows]
        report.plan = found.plan
        report.is_complete = found.is_built
        report.kernels[:] = calls.kernels
        report.activations[:] = calls.activations
        report.operations[:] = calls.operations
        report.warnings[:] = [*self._warnings(found, policy.config), *calls.warnings]
        self._warn(report.warnings)

    def _set_policies(self, found: Draft, log: UndoLog) -> bool:
        wanted = [(d.layer, d.row.after) for d in found.decisions]
        if found.model_policy is not None:
            wanted.append((self._model, found.model_policy))
        changed = [self._set_policy(layer, name, log) for layer, name in wanted]
        return any(changed)

    def _set_policy(self, layer: keras.Layer, name: str, log: UndoLog) -> bool:
        present = layer.dtype_policy
        if present.name == name and not isinstance(present, MixedPrecisionPolicy):
            return False
        original = self.original_policy(layer)
        ours = keras.DTypePolicy(name)
        log.set_property(layer, "dtype_policy", ours)
        self._policies[id(layer)] = (layer, original, ours)
        return True

    def _watch_builds(self, found: Draft, log: UndoLog) -> None:
        """Has `_finish` called whenever one of the unbuilt layers has been built."""
        for layer in [self._model, *(d.layer for d in found.decisions)]:
            if not layer.built and not hasattr(layer.build, "_deepseek_hpf_watches"):
                log.set_on_instance(layer, "build", self._watched_build(layer))

    def _watched_build(self, layer: keras.Layer) -> Callable[..., Any]:
        build = layer.build

        @functools.wraps(build)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = build(*args, **kwargs)
            if vars(layer).get("build") is watched:
                layer.build = build
            self._finish()
            return result

        watched._deepseek_hpf_watches = True  # type: ignore[attr-defined]
        return watched

    def _set_jit(self, policy: MixedPrecisionPolicy, log: UndoLog) -> tuple[bool, str]:
        wanted = policy.config.jit_compile
        if wanted is None or not self._model.compiled:
            return False, ""
        before = self._model.jit_compile
        if before != wanted:
            log.set_property(self._model, "jit_compile", wanted)
            log.set_item(self._model._compile_config.config, "jit_compile", wanted)
        line = f"{self._model.jit_compile}, as the configuration says"
        return before != wanted, line if before == wanted else f"{line} (before: {before})"

    def _renew_guard(self, log: UndoLog) -> None:
        """The guarded step is a new function object: JAX would run the old one's trace."""
        if self._uninstall_guard is None:
            log.record(self._drop_guard)
        else:
            log.record(self._keep_guard)
            self._drop_guard()
        self._uninstall_guard = install_guard(self._model)

    def _drop_guard(self) -> None:
        uninstall, self._uninstall_guard = self._uninstall_guard, None
        if uninstall is not None:
            uninstall()

    def _keep_guard(self) -> None:
        """Where a second call fails, the guard of the first one stays."""
        if self._uninstall_guard is None and vars(self._model).get(_PLACE) is self:
            self._uninstall_guard = install_guard(self._model)

    def _warnings(self, found: Draft, config: PrecisionConfig) -> list[str]:
        said = warnings_for(found, config, dynamic=self._dynamic)
        return [*said, *goal_warnings(self._model, config)]

    def _switched_to(self, config: PrecisionConfig) -> set[str]:
        """Dtypes that a schedule brings in later: the loss has to be scaled for them."""
        phases = config.dynamic.schedule if self._dynamic and config.dynamic else ()
        names = {phase.policy for phase in phases if phase.policy is not None}
        return {keras.DTypePolicy(name).compute_dtype for name in names}

    def _warn(self, said: list[str]) -> None:
        new = [text for text in said if text not in self._warned]
        if new:
            self._warned.update(new)
            warnings.warn("\n".join(["apply_policy:", *new]), stacklevel=4)


def _to_come(found: Draft, policy: MixedPrecisionPolicy) -> set[str]:
    """Dtypes that rules may bring to layers that are not there yet."""
    if found.is_built:
        return set()
    names = {rule.policy for rule in policy.config.rules if rule.policy not in (None, "auto")}
    return {keras.DTypePolicy(name).compute_dtype for name in names}


def _model_line(before: str, after: str) -> str:
    return after if before == after else f"{after} (before: {before})"
