"""A composed variable as TensorFlow's optimizers take it: with the methods of a `tf.Variable`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from deepseek_hpf.optimizers.masters.composed_variable import ComposedVariable

Tensor = Any


class NativeVariable:
    """Stands for the `tf.Variable` that another Keras variable would have.

    Args:
        composed: The variable.
    """

    dtype = tf.float32

    def __init__(self, composed: "ComposedVariable"):
        self._composed = composed
        native = composed.image.value
        self._unique_id = f"{_container(native)._unique_id}_master"
        self.device, self.name = native.device, composed.name

    @property
    def shape(self) -> tf.TensorShape:
        """Shape of the value."""
        return tf.TensorShape(self._composed.shape)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        """Returns the value, where TensorFlow wants a tensor."""
        value = tf.convert_to_tensor(self._composed.current)
        return value if dtype in (None, tf.float32) else tf.cast(value, dtype)

    def read_value(self) -> tf.Tensor:
        """Returns the value."""
        return self.__tf_tensor__()

    def numpy(self) -> Any:
        """Returns the value as an array."""
        return self.read_value().numpy()

    def assign(self, value: Tensor, **_: Any) -> None:
        """Sets the value."""
        self._composed.assign(value)

    def assign_add(self, value: Tensor, **_: Any) -> None:
        """Adds to the value."""
        self._composed.assign(self.read_value() + value)

    def assign_sub(self, value: Tensor, **_: Any) -> None:
        """Subtracts from the value."""
        self._composed.assign(self.read_value() - value)

    def scatter_add(self, rows: tf.IndexedSlices, **_: Any) -> None:
        """Adds to rows of the value."""
        self._scatter(tf.tensor_scatter_nd_add, rows)

    def scatter_sub(self, rows: tf.IndexedSlices, **_: Any) -> None:
        """Subtracts from rows of the value."""
        self._scatter(tf.tensor_scatter_nd_sub, rows)

    def scatter_update(self, rows: tf.IndexedSlices, **_: Any) -> None:
        """Sets rows of the value."""
        self._scatter(tf.tensor_scatter_nd_update, rows)

    def _scatter(self, change: Callable[..., tf.Tensor], rows: tf.IndexedSlices) -> None:
        indices = tf.expand_dims(rows.indices, 1)
        self._composed.assign(change(self.read_value(), indices, rows.values))


def _container(variable: Any) -> Any:
    """The variable of all replicas that one replica's belongs to, or the variable itself."""
    distributed = getattr(variable, "_distributed_container", None)
    return variable if distributed is None else distributed()


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: NativeVariable, *arguments: Any) -> Any:
        return getattr(self.read_value(), name)(*arguments)

    return operate


# `__eq__` and `__ne__` stay those of an object, which dictionaries need.
for _name in set(tf.Tensor.OVERLOADABLE_OPERATORS) - {"__eq__", "__ne__"}:
    setattr(NativeVariable, _name, _operator(_name))
