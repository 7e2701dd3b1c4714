"""A `call` of a layer's own, put on its instance."""

import functools
from typing import Any

import keras

from deepseek_hpf.adapters.undo import UndoLog


def set_call(log: UndoLog, target: Any, call: Any) -> None:
    """Puts a `call` on one layer or operation.

    Under `keras.RematScope` Keras hands it to `jax.checkpoint`, which keeps the trace of a function
    for as long as that lives, arrays that it has read included: with the trace of the first,
    symbolic call the weights are constants, and are never trained. The class's method is another
    object each time that it is asked for, and so is what is handed over here.

    Args:
        log: Where to write how to take it back.
        target: The layer or operation.
        call: Its `call` from now on.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.own_call import set_call
        >>> from deepseek_hpf.adapters.undo import UndoLog
        >>> dense, log = keras.layers.Dense(2), UndoLog()
        >>> set_call(log, dense, lambda x: x)
        >>> dense.call(3.0)
        3.0
        >>> log.undo()
        >>> "call" in vars(dense), "rematerialized_call" in vars(dense)
        (False, False)
    """
    log.set_on_instance(target, "call", call)
    rematerialized = getattr(target, "rematerialized_call", None)
    if keras.backend.backend() != "jax" or rematerialized is None:
        return
    if "rematerialized_call" not in vars(target):
        log.set_on_instance(target, "rematerialized_call", _of_fresh_functions(rematerialized))


def _of_fresh_functions(rematerialized: Any) -> Any:
    @functools.wraps(rematerialized)
    def rematerialized_call(layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        @functools.wraps(layer_call)
        def fresh(*inner: Any, **named: Any) -> Any:
            return layer_call(*inner, **named)

        return rematerialized(fresh, *args, **kwargs)

    return rematerialized_call
