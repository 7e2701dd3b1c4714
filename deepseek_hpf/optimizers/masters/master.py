"""What the optimizer keeps of one variable of low precision, whatever the form of its masters."""

from collections.abc import Callable
from typing import Any, Protocol

import keras

Tensor = Any
AddVariable = Callable[..., keras.Variable]


class Master(Protocol):
    """A variable of the model and what the inner optimizer updates in its place.

    Attributes:
        variable: The variable of the model.
        target: What the inner optimizer updates: a variable whose value is float32.
    """

    variable: keras.Variable
    target: keras.Variable

    def weights(self) -> Tensor:
        """Returns what the next update starts from, float32."""
        ...

    def begin(self, *, branches: bool) -> None:
        """Makes the target ready for an update.

        Args:
            branches: Whether the inner optimizer updates within a branch of a graph, which no
                tensor may leave.
        """
        ...

    def end(self) -> None:
        """Brings what the target has become to the variable of the model."""
        ...

    def take_over(self, value: Tensor) -> None:
        """Goes on from the master of another optimizer, float32, of the same variable."""
        ...


def dtype_of(variable: keras.Variable) -> str:
    """Returns the name of a variable's dtype."""
    return str(keras.backend.standardize_dtype(variable.dtype))


def named(variable: keras.Variable, what: str) -> str:
    """Returns the name of something that is kept of a variable."""
    return f"{variable.path.replace('/', '_')}_{what}"
