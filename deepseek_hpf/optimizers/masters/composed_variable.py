"""A float32 variable that has no memory of its own: it is made of others when it is read."""

import contextlib
import importlib
import threading
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.optimizers.replacement import replaced

Tensor = Any


class ComposedVariable(keras.Variable):
    """What an optimizer updates as a float32 variable, while less than that is kept.

    Reading composes the value, assigning takes it apart. Between `hold` and `release` it is a plain
    tensor, taken apart once at the end: so one update reads and writes the parts once, and PyTorch
    may work in place.

    Args:
        variable: The variable of the model whose weight it stands for, with its shape, layout,
            constraint and name.
        name: Name.
    """

    def __init__(self, variable: keras.Variable, name: str):
        # By thread: replicas under TensorFlow are traced in a thread each.
        self._held: dict[int, Tensor] = {}
        self._image = variable
        super().__init__(
            "zeros",
            shape=variable.shape,
            dtype="float32",
            trainable=False,
            autocast=False,
            layout=getattr(variable, "_layout", None),
            name=name,
        )
        # Names of slots are made of it, and are to be the same wherever the optimizer is built.
        self._path = name
        self.constraint = variable.constraint

    @abstractmethod
    def load(self) -> Tensor:
        """Returns the value, float32, composed anew."""

    @abstractmethod
    def store(self, value: Tensor) -> None:
        """Takes a float32 value apart, and writes the parts."""

    @property
    def current(self) -> Tensor:
        """The value: that which is held, or composed anew."""
        held = self._held.get(threading.get_ident())
        return self.load() if held is None else held

    @property
    def image(self) -> keras.Variable:
        """The variable of the model."""
        return self._image

    def hold(self) -> None:
        """From here on the value is a tensor of its own."""
        self._held[threading.get_ident()] = self.load()

    def release(self) -> None:
        """Writes what is held; nothing where nothing is."""
        held = self._held.pop(threading.get_ident(), None)
        if held is not None:
            self.store(held)

    def assign(self, value: Tensor) -> Tensor:
        """Sets the value.

        Args:
            value: Of the same shape.

        Returns:
            The value.

        Raises:
            ValueError: It has another shape.
        """
        value = ops.cast(ops.convert_to_tensor(value), "float32")
        shape = tuple(value.shape)
        if None not in shape and shape != tuple(self.shape):
            raise ValueError(
                f"A value of the shape of the variable was expected, {tuple(self.shape)}. "
                f"Received: value.shape={shape}. Target variable: {self.name}"
            )
        thread = threading.get_ident()
        if thread in self._held:
            # PyTorch goes on in place.
            self._held[thread] = ops.copy(value)
        else:
            self.store(value)
        return value

    @property
    def value(self) -> Any:
        """What the back end's optimizers work on: a tensor, or what acts as a variable."""
        return self._value

    @property
    def _value(self) -> Any:
        if keras.backend.backend() == "tensorflow":
            return _tensorflow().NativeVariable(self)
        return self.current

    @_value.setter
    def _value(self, value: Any) -> None:
        """Keras sets None; there is nothing to be set."""

    def _initialize_with_initializer(self, initializer: Any) -> None:
        """The parts have been initialized, and that is all."""

    def _deferred_initialize(self) -> None:
        """The same, after a scope without state."""


def built_with(
    inner_optimizer: keras.optimizers.Optimizer, targets: Sequence[keras.Variable]
) -> contextlib.AbstractContextManager[None]:
    """Lets an optimizer be built with composed variables: a context for its `build`.

    Under a strategy for several replicas TensorFlow puts slots where a variable of its own is.
    """
    composed = any(isinstance(target, ComposedVariable) for target in targets)
    if keras.backend.backend() != "tensorflow" or not composed:
        return contextlib.nullcontext()
    name = "add_variable_from_reference"
    base = next(c for c in keras.Optimizer.__mro__ if c.__name__ == "BaseOptimizer")
    return replaced(inner_optimizer, name, getattr(base, name).__get__(inner_optimizer))


def _tensorflow() -> Any:
    return importlib.import_module("deepseek_hpf.optimizers.masters.composed_variable_tensorflow")
