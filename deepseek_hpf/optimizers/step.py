"""One step of the loss-scale optimizer: measure the gradients, then update or skip."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
from keras import ops

from deepseek_hpf.optimizers import finite, transition
from deepseek_hpf.optimizers.clipping_rule import Decision
from deepseek_hpf.optimizers.finite import Statistics
from deepseek_hpf.optimizers.gradient_watch import NoWatch
from deepseek_hpf.optimizers.masters.composed_variable import ComposedVariable
from deepseek_hpf.optimizers.masters.master import Master
from deepseek_hpf.optimizers.replacement import replaced

if TYPE_CHECKING:
    from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer

Tensor = Any
ClipGradients = Callable[[Sequence[Tensor]], list[Tensor]]

FLOAT16_MAX = 65504.0


class Trained(NamedTuple):
    """A variable of the model, its gradient, and what the inner optimizer updates for it."""

    variable: keras.Variable
    gradient: Tensor
    target: keras.Variable
    master: Master | None

    def weights(self) -> Tensor:
        """What the next update starts from: a master follows what was assigned to its variable."""
        if self.master is None:
            return ops.convert_to_tensor(self.target)
        return self.master.weights()


class Step:
    """The gradients of one step, and what can be done with them.

    The three parts are apart because the back ends put different things around them: `measure`
    reads, then exactly one of `take` and `skip` writes.

    Args:
        optimizer: The built `LossScaleOptimizer`.
        gradients: Gradients of the scaled loss, None where there is none.
        variables: The model's variables they belong to.
    """

    def __init__(
        self,
        optimizer: "LossScaleOptimizer",
        gradients: Sequence[Tensor | None],
        variables: Sequence[keras.Variable],
    ):
        self.optimizer = optimizer
        self.inner = optimizer.inner_optimizer
        self.gradients = list(gradients)
        self.variables = list(variables)
        self.masters = [optimizer.master(variable) for variable in variables]
        self.targets = [
            variable if master is None else master.target
            for variable, master in zip(self.variables, self.masters, strict=True)
        ]
        self.accumulation_steps = getattr(self.inner, "gradient_accumulation_steps", None)
        self._trained = [
            i
            for i, gradient in enumerate(self.gradients)
            if gradient is not None and not overwrites(self.variables[i])
        ]
        self.watch = optimizer.watch if self._trained else NoWatch()

    @property
    def branches(self) -> bool:
        """Whether the inner optimizer updates in a branch of a TensorFlow graph of its own."""
        conditional = self.accumulation_steps or getattr(self.inner, "use_ema", False)
        return keras.backend.backend() == "tensorflow" and bool(conditional)

    @property
    def composed(self) -> bool:
        """Whether the inner optimizer updates what is no variable of the back end."""
        return any(isinstance(target, ComposedVariable) for target in self.targets)

    @property
    def trained(self) -> list[Trained]:
        """The variables that have a gradient to be added to them."""
        return [
            Trained(self.variables[i], self.gradients[i], self.targets[i], self.masters[i])
            for i in self._trained
        ]

    def pulls(self) -> list[Tensor]:
        """What the next update goes by, scaled or not: the gradients, or their sums so far."""
        if self.accumulation_steps:
            return self._accumulated()
        return [self.gradients[i] for i in self._trained]

    def pulls_unscaled(self) -> list[Tensor]:
        """The pulls without the loss scale, in the dtypes of what they are added to."""
        if self.accumulation_steps:
            return self._accumulated()
        return self._as_added(self._unscaled())

    def measure(self) -> Statistics:
        """Checks the gradients and measures their norm.

        With gradient accumulation it is the average over the window so far that is measured, this
        step included: it is what would be applied, and it can overflow although no part does.
        """
        if self.accumulation_steps:
            statistics = finite.gradient_statistics(self._accumulated(), self.accumulation_steps)
        else:
            gradients = [finite.dense(self.gradients[i]) for i in self._trained]
            statistics = finite.gradient_statistics(gradients, self._divisor())
        flags = [statistics.finite, *self._other_checks()]
        return Statistics(ops.all(ops.stack(flags)), statistics.norm)

    def update(self, norm: Tensor) -> Decision:
        """Unscales and clips the gradients, and lets the inner optimizer update.

        Args:
            norm: Norm of the gradients that was measured.

        Returns:
            What clipping decided; nothing of it is written yet.
        """
        masters = [master for master in self.masters if master is not None]
        for master in masters:
            master.begin(branches=self.branches)
        trained, decision, clip = self._limited(norm)
        gradients = list(self.gradients)
        for i, gradient in zip(self._trained, trained, strict=True):
            gradients[i] = gradient
        with replaced(self.inner, "_clip_gradients", clip):
            self.inner.apply(gradients, self.targets)
        for master in masters:
            master.end()
        self.optimizer.masters.after_update()
        return decision

    def take(self, statistics: Statistics, update: Callable[[Tensor], Decision]) -> None:
        """Updates, then writes the counters of a finite step.

        Args:
            statistics: What `measure` returned.
            update: `self.update`, or what runs it compiled or on every replica.
        """
        updates = self._updates()
        seen = self.watch.before_update(self, updates)
        decision = update(statistics.norm)
        self.watch.after_update(self, seen)
        optimizer = self.optimizer
        state = {**decision.state, "gradient_norm": statistics.norm}
        for name, value in state.items():
            variable = optimizer.telemetry[name]
            variable.assign(ops.where(updates, value, ops.convert_to_tensor(variable)))
        clipped = ops.logical_and(updates, decision.clipped)
        optimizer.clipped_steps.assign_add(ops.cast(clipped, optimizer.clipped_steps.dtype))
        optimizer.step_skipped.assign(0)
        optimizer.consecutive_floor_skips.assign(0)
        self._advance(transition.after_finite)

    def skip(self, statistics: Statistics) -> None:
        """Writes the counters of a step that is left out, and nothing else."""
        self.watch.skipped(self)
        optimizer = self.optimizer
        optimizer.gradient_norm.assign(statistics.norm)
        optimizer.skipped_steps.assign_add(1)
        optimizer.step_skipped.assign(1)
        scale = optimizer.current_scale()
        counter = optimizer.consecutive_floor_skips
        if scale is None:
            counter.assign_add(1)
        else:
            on_floor = ops.less_equal(scale, optimizer.scale_rules.min_scale)
            counter.assign(ops.where(on_floor, ops.add(counter, 1), 0))
        self._advance(transition.after_overflow)

    def _advance(
        self,
        move: Callable[[transition.ScaleState, transition.ScaleRules], transition.ScaleState],
    ) -> None:
        optimizer = self.optimizer
        variables = (optimizer.dynamic_scale, optimizer.step_counter, optimizer.consecutive_skips)
        state = transition.ScaleState(*map(ops.convert_to_tensor, variables))
        moved = move(state, optimizer.scale_rules)
        optimizer.consecutive_skips.assign(moved.overflows)
        if optimizer.scales_loss:
            optimizer.dynamic_scale.assign(moved.scale)
            optimizer.step_counter.assign(moved.good_steps)

    def _limited(self, norm: Tensor) -> tuple[list[Tensor], Decision, ClipGradients | None]:
        """Unscaled gradients; what clipping decided; how the inner optimizer is to clip."""
        rule, state = self.optimizer.clipping, self.optimizer.clipping_state()
        weights = [self.targets[i] for i in self._trained]
        gradients = [self.gradients[i] for i in self._trained]
        if rule is None:
            unchanged = Decision(ops.convert_to_tensor(False), 1.0, {})
            return self._unscaled(), unchanged, None
        if self.accumulation_steps:
            steps = self.accumulation_steps
            averages = [ops.divide(total, steps) for total in self._accumulated()]
            decision = rule.decide(averages, weights, norm, state)
            return self._unscaled(), decision, lambda given: rule.apply(given, decision.divisor)
        if rule.by_norm:
            # Unscaling and clipping are one division: one pass over the gradients instead of two.
            decision = rule.decide((), (), norm, state)
            divisor = ops.multiply(decision.divisor, self._divisor())
            return rule.apply(gradients, divisor), decision, None
        unscaled = [finite.dense(gradient) for gradient in self._unscaled()]
        decision = rule.decide(unscaled, weights, norm, state)
        return rule.apply(unscaled, decision.divisor), decision, None

    def _unscaled(self) -> list[Tensor]:
        scale = self.optimizer.current_scale()
        gradients = [self.gradients[i] for i in self._trained]
        if scale is not None:
            gradients = [ops.divide(gradient, scale) for gradient in gradients]
        return self._as_added(gradients) if self.accumulation_steps else gradients

    def _as_added(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients in the dtypes of what they are added to."""
        pairs = zip(gradients, (self.targets[i].dtype for i in self._trained), strict=True)
        return [ops.cast(finite.dense(gradient), dtype) for gradient, dtype in pairs]

    def _accumulated(self) -> list[Tensor]:
        """Sum of each gradient over the window so far, this step included."""
        sums = self.inner._accumulated_gradients
        index = [self.inner._get_variable_index(self.targets[i]) for i in self._trained]
        return [ops.add(sums[i], g) for i, g in zip(index, self._unscaled(), strict=True)]

    def _updates(self) -> Tensor:
        """Boolean scalar: whether the inner optimizer updates, or only accumulates."""
        if not self.accumulation_steps:
            return ops.convert_to_tensor(True)
        done = ops.mod(ops.add(self.inner._iterations, 1), self.accumulation_steps)
        return ops.equal(done, 0)

    def _divisor(self) -> Tensor:
        scale = self.optimizer.current_scale()
        return 1.0 if scale is None else scale

    def _other_checks(self) -> list[Tensor]:
        """Checks of what the norm does not see."""
        overwriting = [
            gradient
            for gradient, variable in zip(self.gradients, self.variables, strict=True)
            if gradient is not None and overwrites(variable)
        ]
        checks = [finite.all_finite(overwriting)] if overwriting else []
        if self.accumulation_steps:
            return checks
        # Unscaled, a gradient may leave the range of the float16 variable it is added to.
        for i in self._trained:
            gradient = self.gradients[i]
            if self._may_leave_float16(gradient, self.targets[i]):
                limit = ops.multiply(self._divisor(), FLOAT16_MAX)
                magnitude = ops.cast(ops.abs(finite.dense(gradient)), "float32")
                checks.append(ops.all(ops.less_equal(magnitude, limit)))
        return checks

    def _may_leave_float16(self, gradient: Tensor, target: keras.Variable) -> bool:
        if keras.backend.standardize_dtype(target.dtype) != "float16":
            return False
        if keras.backend.standardize_dtype(gradient.dtype) != "float16":
            return True
        return self.optimizer.scales_loss and self.optimizer.scale_rules.min_scale < 1.0


def overwrites(variable: keras.Variable) -> bool:
    """Returns whether the variable takes its gradient as its value (float8 layers)."""
    return bool(getattr(variable, "overwrite_with_gradient", False))
