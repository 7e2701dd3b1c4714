"""Runs a training step once more, layer by layer, without training."""

import functools
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src import backend  # masks of tensors have no public access

from deepseek_hpf.adapters.expected_retraces import expected_retraces
from deepseek_hpf.adapters.layer_dtype import is_low
from deepseek_hpf.adapters.random_generators import random_states_kept
from deepseek_hpf.dynamic.blame import Kind, Mark
from deepseek_hpf.optimizers.loss_scale_optimizer import LossScaleOptimizer
from deepseek_hpf.optimizers.step import Step
from deepseek_hpf.profiler.recorded_step import find_targets, own_variables
from deepseek_hpf.profiler.recorder import put_on
from deepseek_hpf.profiler.sightings import Target
from deepseek_hpf.profiler.summing import dtype_of, is_float, tapping


def rerun(model: keras.Model, data: Any, factor: float) -> list[list[Mark]]:
    """Runs the model's own `train_step` eagerly and says of each tensor whether it was finite.

    The step runs as it is, in the model's present precision, from its present state and seeds; the
    optimizers are kept from applying anything. Weights, state, metrics and generators are
    afterwards as they were.

    Args:
        model: A model that has been trained with this step.
        data: A batch as `train_step` gets it, or one for each replica.
        factor: What the loss is multiplied with, in place of the present loss scale.

    Returns:
        What passed at the layers, in order, for each replica.
    """
    name = f"deepseek_hpf.dynamic.rerun_{keras.backend.backend()}"
    watch = _Watch(model, factor)
    with expected_retraces(), random_states_kept(), watch.attached():
        importlib.import_module(name).run(model, data, watch.listening)
    return watch.seen()


class _Watch:
    """Hooks on layers, loss and optimizers: per replica, for each runs in a thread of its own."""

    def __init__(self, model: keras.Model, factor: float):
        self._model = model
        self._factor = factor
        self._here = threading.local()
        self._replicas: list[list[Mark]] = []
        self._flags: list[tuple[Mark, Any]] = []
        self._targets = find_targets(model)
        self._by_operation = {id(target.operation): target for target in self._targets}
        self._owners = {
            id(variable): target.path
            for target in self._targets
            if target.is_layer
            for variable in own_variables(target.operation)
        }

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on everything within the context, none after it."""
        undo: list[Callable[[], None]] = []
        try:
            put_on(self._model, "call", self._watched_model(self._model.call), undo)
            put_on(self._model, "compute_loss", self._watched(self._model.compute_loss), undo)
            for target in self._targets:
                call = self._watched_call(target, target.operation.call)
                put_on(target.operation, "call", call, undo)
            for optimizer in self._optimizers():
                self._attach_to(optimizer, undo)
            yield
        finally:
            while undo:
                undo.pop()()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """What runs in the context, in this thread, is one replica's step."""
        marks: list[Mark] = []
        self._here.marks = marks
        self._replicas.append(marks)
        try:
            yield
        finally:
            self._here.marks = None

    def seen(self) -> list[list[Mark]]:
        """What passed, for each replica; waits for the device."""
        if self._flags:
            bad = ops.convert_to_numpy(ops.stack([flag for _, flag in self._flags]))
            for (mark, _), is_bad in zip(self._flags, bad, strict=True):
                mark.is_bad |= bool(is_bad)
        self._flags.clear()
        return self._replicas

    def _optimizers(self) -> list[Any]:
        """The model's optimizer, and those that a `train_step` of its own may use."""
        held = [self._model.optimizer, *vars(self._model).values()]
        found = {id(each): each for each in held if isinstance(each, keras.optimizers.Optimizer)}
        return list(found.values())

    def _attach_to(self, optimizer: Any, undo: list[Callable[[], None]]) -> None:
        def apply(grads: Any, trainable_variables: Any = None) -> None:
            self._note_weights(optimizer, grads, trainable_variables)

        def stateless_apply(
            optimizer_variables: Any, grads: Any, trainable_variables: Any
        ) -> tuple[Any, Any]:
            self._note_weights(optimizer, grads, None)
            return trainable_variables, optimizer_variables

        def scale_loss(loss: Any) -> Any:
            scaled = loss * self._factor
            self._note("loss", "", scaled)
            return scaled

        put_on(optimizer, "apply", apply, undo)
        put_on(optimizer, "stateless_apply", stateless_apply, undo)
        if optimizer is self._model.optimizer:
            put_on(optimizer, "scale_loss", scale_loss, undo)
        if isinstance(optimizer, LossScaleOptimizer):
            put_on(optimizer, "current_scale", lambda: self._factor, undo)

    def _note_weights(self, optimizer: Any, gradients: Any, variables: Any) -> None:
        known = optimizer._trainable_variables if variables is None else variables
        for variable, gradient in zip(known, gradients, strict=False):
            if gradient is not None:
                dense = ops.convert_to_tensor(gradient)
                self._note("weight_gradient", self._owner(variable), dense)
        if isinstance(optimizer, LossScaleOptimizer) and optimizer.built:
            step = Step(optimizer, gradients, known)
            for trained, pull in zip(step.trained, step.pulls_unscaled(), strict=True):
                self._note("pull", self._owner(trained.variable), pull)

    def _owner(self, variable: Any) -> str:
        return self._owners.get(id(variable), "")

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched_loss(*args: Any, **kwargs: Any) -> Any:
            loss = function(*args, **kwargs)
            self._note("loss", "", loss)
            return loss

        return watched_loss

    def _watched_model(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            outputs = function(*args, **kwargs)
            for leaf in keras.tree.flatten(outputs):
                self._note("output", "", leaf)
            return outputs

        return watched_call

    def _watched_call(self, target: Target, call: Callable[..., Any]) -> Callable[..., Any]:
        path = self._path_to_blame(target)

        @functools.wraps(call)
        def watched_call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_listening():
                return call(*args, **kwargs)
            given = functools.partial(self._tapped, "input_gradient", path)
            args, kwargs = keras.tree.map_structure(given, (args, kwargs))
            return keras.tree.map_structure(
                functools.partial(self._passed, path), call(*args, **kwargs)
            )

        return watched_call

    def _path_to_blame(self, target: Target) -> str:
        """The layer whose precision decides: of an operation between layers, the one before it."""
        while not target.is_layer:
            nodes = target.operation._inbound_nodes[:1]
            before = [id(parent.operation) for node in nodes for parent in node.parent_nodes]
            targets = [self._by_operation[i] for i in before if i in self._by_operation]
            if not targets:
                return ""
            target = targets[0]
        return target.path

    def _passed(self, path: str, value: Any) -> Any:
        self._note("output", path, value)
        return self._tapped("output_gradient", path, value)

    def _tapped(self, kind: Kind, path: str, value: Any) -> Any:
        if not is_float(value) or not (_is_traced(value) or tapping().is_concrete(value)):
            return value
        marks = self._here.marks

        def report(gradient: Any) -> None:
            self._add(marks, kind, path, gradient)

        tapped = tapping().with_gradient(value, report)
        mask = backend.get_keras_mask(value)
        if mask is not None:
            backend.set_keras_mask(tapped, mask)
        return tapped

    def _note(self, kind: Kind, path: str, value: Any) -> None:
        if is_float(value) and self._is_listening():
            self._add(self._here.marks, kind, path, value)

    def _add(self, marks: list[Mark], kind: Kind, path: str, value: Any) -> None:
        mark = Mark(kind, path, is_low(dtype_of(value)))
        marks.append(mark)
        if isinstance(value, np.ndarray):  # JAX reports the values within a loop to the host
            mark.is_bad = not bool(np.isfinite(value).all())
            return
        bad = ops.logical_not(ops.all(ops.isfinite(value)))
        if tapping().is_concrete(bad):
            self._flags.append((mark, bad))
        elif _is_traced(bad):
            tapping().observe(bad, functools.partial(_arrived, mark))

    def _is_listening(self) -> bool:
        return getattr(self._here, "marks", None) is not None


def _is_traced(value: Any) -> bool:
    """Whether its values will be reported later, as JAX does of what it traces."""
    return hasattr(tapping(), "observe") and ops.is_tensor(value)


def _arrived(mark: Mark, bad: Any) -> None:
    mark.is_bad |= bool(np.asarray(bad))
