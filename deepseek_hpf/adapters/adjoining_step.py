"""A training step beside the model's own: traced or run, and nothing of it left in the model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.trainers.compile_utils import CompileLoss, CompileMetrics

from deepseek_hpf.adapters.forward_state import carried_states

_MISSING = object()


@contextlib.contextmanager
def standing_in(model: keras.Model) -> Iterator[None]:
    """Gives a compiled model stand-ins for those parts that its first step would build.

    A step builds the optimizer, the loss and the metrics when it first runs, which cannot be taken
    back. While this context lasts, an optimizer, loss or metrics that are not built are replaced by
    copies, and the optimizer's copy is built.

    Args:
        model: A Keras model, built and compiled.

    Yields:
        Nothing.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> with standing_in(model):
        ...     print(model.optimizer.built)
        True
        >>> model.optimizer.built
        False
    """
    with contextlib.ExitStack() as undo:
        for name, value in _stand_ins(model).items():
            undo.callback(_restore, model, name, vars(model).get(name, _MISSING))
            # Past Keras's and PyTorch's tracking, which would keep the stand-in for good.
            object.__setattr__(model, name, value)
        yield


@contextlib.contextmanager
def values_restored(model: keras.Model) -> Iterator[Callable[[], None]]:
    """Gives all variables that a training step writes their values back, whatever happens within.

    Args:
        model: A Keras model whose optimizer, loss and metrics are built or stood in for.

    Yields:
        A function that gives them back at once, as often as wanted.
    """
    variables = _written_by_a_step(model)
    values = [keras.ops.copy(variable.value) for variable in variables]

    def rewind() -> None:
        for variable, value in zip(variables, values, strict=True):
            # JAX's training step takes over the arrays that it is given.
            variable.assign(keras.ops.copy(value))

    try:
        yield rewind
    finally:
        rewind()


def _stand_ins(model: keras.Model) -> dict[str, Any]:
    found: dict[str, Any] = {}
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        copy = type(optimizer).from_config(optimizer.get_config())
        copy.build(model.trainable_variables)
        found["optimizer"] = copy
    names = getattr(model, "output_names", None)
    loss = model._compile_loss
    if loss is not None and not loss.built:
        found["_compile_loss"] = CompileLoss(
            loss._user_loss, loss._user_loss_weights, output_names=names
        )
    metrics = model._compile_metrics
    if metrics is not None and not metrics.built:
        found["_compile_metrics"] = CompileMetrics(
            metrics._user_metrics, metrics._user_weighted_metrics, output_names=names
        )
    return found


def _written_by_a_step(model: keras.Model) -> list[Any]:
    variables = [
        *model.variables,
        *carried_states(model),
        *(model.optimizer.variables if model.optimizer is not None else ()),
        *(variable for metric in model.metrics for variable in metric.variables),
    ]
    return list({id(variable): variable for variable in variables}.values())


def _restore(model: keras.Model, name: str, before: Any) -> None:
    if before is _MISSING:
        object.__delattr__(model, name)
    else:
        object.__setattr__(model, name, before)
