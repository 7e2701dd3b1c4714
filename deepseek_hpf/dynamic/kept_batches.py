"""Keeps the batches of the last step, so that a step which was skipped can be run again."""

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras

Function = Callable[..., Any]


class KeptBatches:
    """Stands around a model's training function and keeps what it is given.

    Keras shows its callbacks no batch. `fit` reads `model.train_function` anew at every step: in
    its place is put a function that draws the batches of one execution, keeps them, and passes them
    on. Nothing is traced more often and no result changes. A plan switch, `compile` and
    `make_train_function` replace that attribute: call `install` before every step.

    Args:
        model: A compiled model.

    Example:
        >>> import keras, numpy as np
        >>> from deepseek_hpf.dynamic.kept_batches import KeptBatches
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> kept = KeptBatches(model)
        >>> before_step = keras.callbacks.LambdaCallback(
        ...     on_train_batch_begin=lambda batch, logs: kept.install()
        ... )
        >>> history = model.fit(
        ...     np.zeros((6, 4)), np.ones((6, 1)), batch_size=4, callbacks=[before_step], verbose=0
        ... )
        >>> [(x.shape[0], y.shape[0]) for x, y in kept.taken()]
        [(2, 2)]
        >>> kept.remove()
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._batches: list[Any] = []
        self._installed = False

    def install(self) -> None:
        """Puts itself around the model's training function, unless it is there already.

        It goes inside of what others have put around that function, such as a replay: those may
        draw batches that are not trained on.
        """
        self._installed = True
        holder, name = self._model, "train_function"
        while hasattr(function := getattr(holder, name), "function"):
            if isinstance(function, _Keeping) and function.kept is self:
                return
            holder, name = function, "function"
        if function is not None:
            setattr(holder, name, _Keeping(function, self))

    def taken(self) -> list[Any]:
        """The batches that the last call of the training function trained on.

        Returns:
            As many as one execution has steps, fewer at the end of an epoch, each as `train_step`
            gets it; values per replica under `tf.distribute`. Empty before the first step.
        """
        return list(self._batches)

    def remove(self) -> None:
        """Forgets the batches, and gives the model its own training function back."""
        self._installed = False
        self._batches = []
        holder, name = self._model, "train_function"
        while hasattr(function := getattr(holder, name), "function"):
            if isinstance(function, _Keeping) and function.kept is self:
                setattr(holder, name, function.function)
            else:
                holder, name = function, "function"

    def draw(self, iterator: Iterator[Any]) -> list[Any]:
        """Takes the batches of one execution.

        Args:
            iterator: Yields batches.

        Returns:
            At least one batch.

        Raises:
            StopIteration: There is none left.
        """
        batches = list(itertools.islice(iterator, self._model.steps_per_execution))
        if not batches:
            raise StopIteration
        self._batches = batches
        return batches

    def run(self, function: Function, fed: Any, arguments: tuple[Any, ...]) -> Any:
        """Runs one execution of a training function.

        Args:
            function: The training function.
            fed: How TensorFlow's is given batches; None on other back ends.
            arguments: What `fit` gave it: the data last; on JAX the state first.

        Returns:
            What the training function returns.
        """
        *state, data = arguments
        if not self._installed:  # kept along with the function of a plan, which outlives `remove`
            return function(*arguments)
        if keras.backend.backend() == "torch":  # PyTorch's loop draws the batch itself
            self._batches = list(data)
            return function(*arguments)
        batches = self.draw(data)
        if fed is None:
            return function(*state, iter(batches))
        logs, self._batches = fed.run(self._model, batches, data)
        return logs


class _Keeping:
    """A training function that keeps its batches."""

    def __init__(self, function: Function, kept: KeptBatches):
        self.function = function
        self.kept = kept
        self._fed = _fed(function)

    def __call__(self, *arguments: Any) -> Any:
        return self.kept.run(self.function, self._fed, arguments)


def _fed(function: Function) -> Any:
    if keras.backend.backend() != "tensorflow":
        return None
    name = "deepseek_hpf.dynamic.kept_batches_tensorflow"
    return importlib.import_module(name).Fed(function)
