"""Optimizer steps seen from outside: guarded, clipped, or skipped as a whole."""

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from deepseek_hpf.torch import entered
from deepseek_hpf.torch.master_weights import NoMasters
from deepseek_hpf.torch.running_statistics import RunningStatistics
from deepseek_hpf.torch.verdicts import Verdicts

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Step:
    """One optimizer step under way.

    Args:
        optimizer: Whose step it is.
        verdicts: Judges the gradients.
        masters: Take the place of parameters of low precision while the optimizer runs.
        statistics: Hear of the end of the step.
        dtypes: Autocast's, within a closure.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        verdicts: Verdicts,
        masters: NoMasters,
        statistics: RunningStatistics,
        dtypes: "dict[str, torch.dtype]",
    ):
        self.optimizer = optimizer
        self._verdicts = verdicts
        self._masters = masters
        self._statistics = statistics
        self._masters_in_place = ExitStack()
        self._dtypes = dtypes
        self.in_closure = False
        self._has_gradients = False
        self._skipped = False
        self._before: _Snapshot | None = None
        self._end = ExitStack()
        # Autocast is for the model: a product of matrices within an optimizer is not.
        self._end.enter_context(entered.autocast(dict.fromkeys(dtypes, torch.float32)))

    def begin(self, arguments: Arguments) -> Arguments | None:
        """Judges the gradients, or sees to it that they are judged when the closure made them.

        Args:
            arguments: Positional, `self` among them, and keyword arguments of the step.

        Returns:
            The arguments to go on with; None for the same.
        """
        args, kwargs = arguments
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._judging(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._judging(args[1]), *args[2:]), kwargs
        self._judge()
        return None

    def end(self) -> None:
        """The step has ended: it counts."""
        self.undo()
        self._statistics.stepped(skipped=self._skipped)
        if self._has_gradients:
            self._verdicts.count(skipped=self._skipped)

    def undo(self) -> None:
        """Restores what was there before the step, all of it if the step is to be skipped."""
        with self._end, torch._C.DisableTorchFunction():
            self._masters_in_place.close()
            if self._skipped and self._before is not None:
                self._before.restore()

    def _judging(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        losses: list[Any] = []

        def judged() -> Any:
            if self._skipped:
                return losses[-1]
            if self._before is None:
                self._before = _Snapshot(self.optimizer, self._masters)
            self._masters_in_place.close()
            self.in_closure = True
            try:
                with entered.autocast(self._dtypes):
                    loss = closure()
            finally:
                self.in_closure = False
            self._judge()
            if not self._skipped or not losses:
                losses.append(loss)
            # A line search that is given up ends at a loss it knows, with no gradient to follow.
            return losses[-1]

        return judged

    def _judge(self) -> None:
        with torch._C.DisableTorchFunction():
            parameters = [p for p in parameters_of(self.optimizer) if p.grad is not None]
            self._has_gradients = self._has_gradients or bool(parameters)
            if self._verdicts.admit(self.optimizer, parameters):
                self._masters_in_place.enter_context(self._masters.in_place(self.optimizer))
                return
            self._skipped = True
            # Without gradients no optimizer moves a weight or a slot.
            for parameter in parameters:
                self._end.callback(_give_back, parameter, parameter.grad)
                parameter.grad = None


class _Snapshot:
    """The weights and slots before a step that evaluates its closure more than once."""

    def __init__(self, optimizer: torch.optim.Optimizer, masters: NoMasters):
        self._restore_masters = masters.remember(optimizer)
        with torch._C.DisableTorchFunction():
            self._optimizer = optimizer
            self._weights = [(p, p.detach().clone()) for p in parameters_of(optimizer)]
            self._state = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}

    def restore(self) -> None:
        """Puts them back."""
        self._restore_masters()
        with torch.no_grad():
            for parameter, weight in self._weights:
                parameter.copy_(weight)
        self._optimizer.state.clear()
        self._optimizer.state.update(self._state)


class Steps(threading.local):
    """The steps within one context, each thread's own.

    Args:
        verdicts: Judges the gradients.
        masters: Of parameters of low precision.
        statistics: Of batch normalization.
        dtypes: Autocast's.
    """

    def __init__(
        self,
        verdicts: Verdicts,
        masters: NoMasters,
        statistics: RunningStatistics,
        dtypes: "dict[str, torch.dtype]",
    ):
        self._verdicts = verdicts
        self._masters = masters
        self._statistics = statistics
        self._dtypes = dtypes
        self._under_way: list[Step] = []

    def before(self, optimizer: torch.optim.Optimizer, arguments: Arguments) -> Arguments | None:
        """A step begins."""
        if any(step.optimizer is optimizer for step in self._under_way):
            self.abandon()
        step = Step(optimizer, self._verdicts, self._masters, self._statistics, self._dtypes)
        self._under_way.append(step)
        try:
            return step.begin(arguments)
        except BaseException:
            self.abandon()
            raise

    def after(self, optimizer: torch.optim.Optimizer) -> None:
        """A step has ended."""
        while self._under_way:
            step = self._under_way.pop()
            if step.optimizer is optimizer:
                step.end()
                return
            step.undo()

    def abandon(self) -> None:
        """Ends what an exception left open."""
        while self._under_way:
            self._under_way.pop().undo()

    @property
    def stale(self) -> bool:
        """Whether a step was left open: outside of closures nothing runs within a step."""
        return bool(self._under_way) and not any(step.in_closure for step in self._under_way)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Returns the parameters of all groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _give_back(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
    with torch._C.DisableTorchFunction():
        parameter.grad = gradient
