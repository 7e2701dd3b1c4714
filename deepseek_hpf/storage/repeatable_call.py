"""A layer's call that can be run again and does the same, without leaving a trace."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src import backend  # scopes, the running call and masks have no public access
from keras.src.backend.common import global_state

Call = Callable[..., Any]


class RepeatableCall:
    """Runs a call, and runs it again as it was.

    The first run is an ordinary one: seeds move on, moving statistics are updated, losses are
    added. All further ones begin with the seeds and statistics of the first, under its autocast
    and within its call, draw what it has drawn, and change nothing.

    Args:
        layer: The layer.
        call: Its `call`.

    Example:
        >>> import keras
        >>> from deepseek_hpf.storage.repeatable_call import RepeatableCall
        >>> dropout = keras.layers.Dropout(0.5, seed=1)
        >>> run = RepeatableCall(dropout, dropout.call)
        >>> x = keras.ops.ones((1, 64))
        >>> first, again = (run(x, training=True) for _ in range(2))
        >>> bool(keras.ops.all(first == again))
        True
    """

    def __init__(self, layer: keras.Layer, call: Call):
        self._layer = layer
        self._call = call
        self._before: list[tuple[Any, Any]] | None = None
        self._losses_again: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the call."""
        tensors = keras.tree.flatten((args, kwargs))
        if self._before is None:
            self._before = [(v, keras.ops.copy(v.value)) for v in _changing(self._layer)]
            self._running = global_state.get_global_attribute("current_call_ctx")
            self._autocast = backend.get_autocast_scope()
            self._masks = [backend.get_keras_mask(tensor) for tensor in tensors]
            return self._call(*args, **kwargs)
        for tensor, mask in zip(tensors, self._masks, strict=True):
            if mask is not None:
                backend.set_keras_mask(tensor, mask)
        scope = keras.StatelessScope(self._before, collect_losses=True, initialize_variables=False)
        with self._as_it_was(), scope:
            result = self._call(*args, **kwargs)
        self._losses_again = scope.losses
        return result

    def with_losses(self, *args: Any, **kwargs: Any) -> tuple[Any, list[tuple[keras.Layer, Any]]]:
        """Runs the call, and takes the losses that it adds.

        Args:
            args: Of the call.
            kwargs: Of the call.

        Returns:
            The result, and the losses with the layers that have added them; no layer has them now.
        """
        first = self._before is None
        with loss_ids_apart(self._layer) as parts:
            had = [len(part._losses) for part in parts]
            result = self(*args, **kwargs)
            found = []
            for part, count in zip(parts, had, strict=True):
                if first:
                    found += [(part, loss) for loss in part._losses[count:]]
                    del part._losses[count:]
                else:
                    found += [(part, x) for x in self._losses_again if id(x) in part._loss_ids]
        return result, found

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        wanted = {"current_call_ctx": self._running, "autocast_scope": self._autocast}
        present = {name: global_state.get_global_attribute(name) for name in wanted}
        try:
            for name, value in wanted.items():
                global_state.set_global_attribute(name, value)
            yield
        finally:
            for name, value in present.items():
                global_state.set_global_attribute(name, value)


@contextlib.contextmanager
def loss_ids_apart(layer: keras.Layer) -> Iterator[list[keras.Layer]]:
    """Has layers know no losses but those that are added within.

    In a stateless scope a layer knows its losses by the identities of tensors, and keeps those of
    tensors that are gone: a new loss, of another layer, may have the same.

    Args:
        layer: A layer.

    Yields:
        The layer and those that it holds.
    """
    parts = layer._flatten_layers()
    before = [set(part._loss_ids) for part in parts]
    for part in parts:
        part._loss_ids.clear()
    try:
        yield parts
    finally:
        for part, known in zip(parts, before, strict=True):
            part._loss_ids.clear()
            part._loss_ids.update(known)


def _changing(layer: keras.Layer) -> list[Any]:
    """What a call may change: seeds and statistics, but not weights, frozen ones included."""
    found = {}
    for part in layer._flatten_layers():
        seeds = [generator.state for generator in part._seed_generators]
        found.update({id(v): v for v in (*part._non_trainable_variables, *seeds)})
    return list(found.values())
