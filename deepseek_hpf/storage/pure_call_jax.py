"""A layer's `call` as a pure function of arrays, all that it reads among them, under JAX."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import keras
from keras.src import backend  # the running scope and masks of tensors have no public access

from deepseek_hpf.storage.repeatable_call import loss_ids_apart

Call = Callable[..., Any]


@dataclass(frozen=True)
class PureCall:
    """What a call computes: `outputs = jaxpr(captured, arrays)`.

    Args:
        jaxpr: The computation, closed over nothing.
        captured: Arrays that the call has read by itself: variables, seeds, masks.
        arrays: Those among its arguments.
        variables: For each of `captured`, whether it is a variable's value.
        finish: Makes of the outputs what the call returns, and hands on the new values of
            variables, losses and masks.
    """

    jaxpr: Any
    captured: list[Any]
    arrays: list[Any]
    variables: list[bool]
    finish: Callable[[list[Any]], Any]

    def __call__(self, captured: list[Any], arrays: list[Any]) -> list[Any]:
        """Computes the outputs of some arrays of the same shapes."""
        return jax.core.eval_jaxpr(self.jaxpr, captured, *arrays)


class _Recording(keras.StatelessScope):
    """Keeps new values of variables to itself; reads those of the scope around it."""

    def __init__(self, around: keras.StatelessScope | None):
        super().__init__(
            collect_losses=around is None or around.collect_losses, initialize_variables=False
        )
        self._around = around
        self.updated: dict[int, Any] = {}
        self.read: dict[int, Any] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        super().add_update(update)
        self.updated[id(update[0])] = update[0]

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None and self._around is not None:
            value = self._around.get_current_value(variable)
        if value is None:
            value = variable._value
        if value is not None and id(variable) not in self.updated:
            self.read[id(value)] = value
        return value


def pure_call(layer: keras.Layer, call: Call, args: Any, kwargs: Any) -> PureCall | None:
    """Traces a call.

    Args:
        layer: The layer.
        call: Its `call`.
        args: Positional arguments, any of them nested.
        kwargs: Named arguments.

    Returns:
        The call as a pure function; None where it is none: it prints, say, or calls back.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]
    traced = _Traced(layer, backend.get_stateless_scope())

    def compute(*arrays: Any) -> list[Any]:
        inner = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            inner[place] = array
            backend.set_keras_mask(array, backend.get_keras_mask(leaves[place]))
        inner_args, inner_kwargs = jax.tree.unflatten(tree, inner)
        return traced.outputs_of(call, inner_args, inner_kwargs)

    arrays = [leaves[place] for place in places]
    closed = jax.make_jaxpr(compute)(*arrays)
    if closed.effects:
        return None
    variables = [id(value) in traced.scope.read for value in closed.consts]
    return PureCall(closed.jaxpr, closed.consts, arrays, variables, traced.finish)


class _Traced:
    """What a call leaves behind besides the arrays that it returns."""

    def __init__(self, layer: keras.Layer, around: keras.StatelessScope | None):
        self._layer = layer
        self.scope = _Recording(around)

    def outputs_of(self, call: Call, args: Any, kwargs: Any) -> list[Any]:
        with loss_ids_apart(self._layer) as parts, self.scope:
            self._returned, self._tree = jax.tree.flatten(call(*args, **kwargs))
            self._owners = [
                [part for part in parts if id(loss) in part._loss_ids] for loss in self.scope.losses
            ]
        masks = [backend.get_keras_mask(leaf) for leaf in self._arrays_returned()]
        self._masked = [mask is not None for mask in masks]
        updates = [self.scope.get_current_value(v) for v in self.scope.updated.values()]
        extra = [mask for mask in masks if mask is not None]
        return [*self._arrays_returned(), *extra, *updates, *self.scope.losses]

    def finish(self, outputs: list[Any]) -> Any:
        values = iter(outputs)
        returned = [next(values) if _is_array(leaf) else leaf for leaf in self._returned]
        arrays = [leaf for leaf in returned if _is_array(leaf)]
        for leaf, masked in zip(arrays, self._masked, strict=True):
            if masked:
                backend.set_keras_mask(leaf, next(values))
        for variable in self.scope.updated.values():
            variable.assign(next(values))
        self._hand_on_losses(values)
        return jax.tree.unflatten(self._tree, returned)

    def _arrays_returned(self) -> list[Any]:
        return [leaf for leaf in self._returned if _is_array(leaf)]

    def _hand_on_losses(self, values: Iterator[Any]) -> None:
        for owners, value in zip(self._owners, values, strict=True):
            for owner in owners:
                owner.add_loss(value)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array)
