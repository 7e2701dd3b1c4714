"""One recorded training step of a model that is left as it was."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from deepseek_hpf.adapters.output import graph_operations, is_graph
from deepseek_hpf.adapters.walk import walk
from deepseek_hpf.profiler.recorder import Recorder, Report
from deepseek_hpf.profiler.sightings import LOSS, Target, scope_name, scoped_path
from deepseek_hpf.profiler.summing import dtype_of, is_float, summarize, tapping


def find_targets(model: keras.Model) -> list[Target]:
    """Everything of a model that can be watched: its layers and its operations that are no layers.

    Args:
        model: The model, built.

    Returns:
        The targets, layers first.
    """
    walked = walk(model)
    targets = [Target(w.path, w.layer, w.parent) for w in walked]
    known = {id(target.operation) for target in targets}
    graphs = [(model, None), *((w.layer, w.path) for w in walked)]
    for graph, path in graphs:
        for operation in graph_operations(graph) if is_graph(graph) else []:
            if not isinstance(operation, keras.Layer) and id(operation) not in known:
                known.add(id(operation))
                name = f"{path}/{operation.name}" if path else operation.name
                targets.append(Target(name, operation, path, is_layer=False))
    return targets


class RecordedStep:
    """Runs forward, loss and backward once, with every write of a variable caught.

    Args:
        model: The model, built.
        x: Inputs.
        y: Labels; None for a forward pass only.
        sample_weight: Weights of the samples.
    """

    def __init__(self, model: keras.Model, x: Any, y: Any, sample_weight: Any = None):
        self._model = model
        self._x, self._y, self._weight = x, y, sample_weight
        self.output_dtypes: list[str] = []
        self.output_paths: list[str] = []
        self.loss_dtypes: list[str] = []
        self.has_loss = False

    def run(self, recorder: Recorder, factor: float = 1.0) -> None:
        """Runs the step.

        Args:
            recorder: What watches it.
            factor: What the loss is multiplied with, as the optimizer's loss scaling does.
        """
        taps, trainables = tapping(), self._trainables()
        with random_states_kept(), recorder.attached():
            with taps.listening(recorder.heard(recorder.sightings.note_operation)):
                loss, gradients = taps.differentiate(self._bound(recorder, factor), _of(trainables))
            if loss is None:
                return
            self.has_loss = True
            _note_loss(recorder, loss, factor)
            owners = _owners(recorder.targets)
            for variable, gradient in zip(trainables, gradients(), strict=True):
                owner = owners.get(id(variable))
                if owner is not None and gradient is not None and is_float(gradient):
                    _note_weight_gradient(recorder, owner.path, variable, gradient, factor)

    def trace(self, recorder: Recorder) -> None:
        """Lists the operations of the step without running it, where they cannot be watched.

        Args:
            recorder: What takes note of them.
        """
        if not is_traced():
            return

        def seen(stack: str, name: str, inputs: list[Any], outputs: list[Any]) -> None:
            path = scoped_path(recorder.targets, stack)
            recorder.sightings.note_operation(path, name, inputs, outputs)

        with random_states_kept(), recorder.only("trace"):
            tapping().traced_operations(self._bound(recorder), _of(self._trainables()), seen)

    def replay(
        self, recorder: Recorder, report: Report, factor: float = 1.0, *, backward: bool = False
    ) -> None:
        """Runs the step once more for the values of its operations.

        Args:
            recorder: What knows in which target each ran; of backward ones only a trace does.
            report: Takes the path, the operation's name, its tensors and its results.
            factor: What the loss is multiplied with.
            backward: Whether the backward pass is reported, or the forward pass and the loss.
        """
        taps, values = tapping(), _of(self._trainables())
        with random_states_kept(), recorder.only("trace" if is_traced() else "name"):
            function = self._bound(recorder, factor)
            if is_traced():

                def seen(stack: str, *operation: Any) -> None:
                    report(scoped_path(recorder.targets, stack), *operation)

                taps.evaluated_operations(function, values, seen, backward)
                return
            with nullcontext() if backward else taps.listening(recorder.heard(report)):
                loss, gradients = taps.differentiate(function, values)
            if backward and loss is not None:
                with recorder.inside(""), taps.listening(recorder.heard(report)):
                    gradients()

    def batch_tensors(self) -> list[Any]:
        """The float tensors of the batch.

        Returns:
            Inputs, labels and weights.
        """
        leaves = keras.tree.flatten((self._x, self._y, self._weight))
        return [keras.ops.convert_to_tensor(leaf) for leaf in leaves if is_float(leaf)]

    def _trainables(self) -> list[Any]:
        return list(self._model.trainable_variables)

    def _bound(self, recorder: Recorder, factor: float = 1.0) -> Callable[[list[Any]], Any]:
        """The step as a function of the values of its weights."""
        trainables = self._trainables()
        return lambda values: self._forward(trainables, values, recorder, factor)

    def _forward(
        self, trainables: list[Any], values: list[Any], recorder: Recorder, factor: float
    ) -> Any:
        model = self._model
        mapping = list(zip(trainables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            with recorder.inside(""):
                prediction = model(self._x, training=True)
            tensors = [t for t in keras.tree.flatten(prediction) if is_float(t)]
            self.output_dtypes = [dtype_of(t) for t in tensors]
            self.output_paths = [recorder.maker_of(t) for t in tensors]
        if self._y is None or getattr(model, "_compile_loss", None) is None:
            return None
        return self._loss(prediction, scope, recorder) * factor

    def _loss(self, prediction: Any, scope: Any, recorder: Recorder) -> Any:
        model = self._model
        mapping = _by_variable(model, scope)
        with (
            _own_loss(model, self._y, prediction),
            keras.StatelessScope(state_mapping=mapping, collect_losses=True) as again,
        ):
            again.losses = scope.losses
            added = [dtype_of(loss) for loss in model.losses]
            with recorder.inside(LOSS), _scope_of_loss(recorder):
                loss = model.compute_loss(
                    x=self._x, y=self._y, y_pred=prediction, sample_weight=self._weight
                )
        functions = [_loss_dtype(f) for f in keras.tree.flatten(model._compile_loss._user_loss)]
        self.loss_dtypes = [*added, *(f for f in functions if f), dtype_of(loss)]
        return keras.ops.cast(loss, "float32")


def is_traced() -> bool:
    """Whether the back end shows its operations in a trace only."""
    return hasattr(tapping(), "traced_operations")


def _of(variables: list[Any]) -> list[Any]:
    return [variable.value for variable in variables]


def _by_variable(model: keras.Model, scope: Any) -> list[tuple[Any, Any]]:
    pairs = [(variable, scope.get_current_value(variable)) for variable in model.variables]
    return [(variable, value) for variable, value in pairs if value is not None]


def _loss_dtype(function: Any) -> str | None:
    return str(function.dtype) if isinstance(function, keras.Loss) else None


@contextmanager
def _scope_of_loss(recorder: Recorder) -> Iterator[None]:
    with tapping().scope(scope_name(LOSS)) if recorder.mode == "trace" else nullcontext():
        yield


@contextmanager
def _own_loss(model: keras.Model, y: Any, prediction: Any) -> Iterator[None]:
    """A loss container of our own: the model's is made, with its metrics, when it is first used."""
    present = model._compile_loss
    own = type(present)(
        present._user_loss,
        present._user_loss_weights,
        reduction=present.reduction,
        output_names=present.output_names,
    )
    own.build(y, prediction)
    vars(model)["_compile_loss"] = own
    try:
        yield
    finally:
        vars(model)["_compile_loss"] = present


@contextmanager
def random_states_kept() -> Iterator[None]:
    """The global generators of Python, NumPy and PyTorch are afterwards as they were."""
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
    ]
    taps = tapping()
    if hasattr(taps, "random_states"):
        states += taps.random_states()
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)


def _note_loss(recorder: Recorder, loss: Any, factor: float) -> None:
    summary = summarize(loss, 1.0 / factor)
    recorder.sightings.look(LOSS, LOSS, summary)


def _owners(targets: list[Target]) -> dict[int, Target]:
    """The layer of every float weight, by the weight's identity."""
    return {id(v): t for t in targets if t.is_layer for v in own_variables(t.operation)}


def _note_weight_gradient(
    recorder: Recorder, path: str, variable: Any, gradient: Any, factor: float
) -> None:
    summary = summarize(gradient, 1.0 / factor)
    recorder.sightings.note_summary(path, "weight_gradient", summary, variable.name)
    recorder.sightings.look(path, "weight_gradient", summary)


def own_variables(layer: keras.Layer) -> list[Any]:
    """The float weights that a layer itself has, its sub-layers' left out.

    Args:
        layer: The layer.

    Returns:
        Keras variables.
    """
    held = [*layer._trainable_variables, *layer._non_trainable_variables]
    return [v for v in held if keras.backend.is_float_dtype(v.dtype)]
