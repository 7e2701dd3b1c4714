"""What the `fit` that is running holds and hands to nobody: its epoch iterator, its callbacks."""

import inspect
from typing import Any

import keras


def local_of_fit(model: keras.Model, name: str) -> Any | None:
    """Looks up a local variable of the `fit` that is running; nothing is changed there.

    Callbacks and training steps run on top of `fit` on the stack, and Keras gives them neither its
    data nor the list of all callbacks.

    Args:
        model: The model whose `fit` called, however indirectly.
        name: Name of the local variable in Keras's `fit`, e.g. `"epoch_iterator"`.

    Returns:
        Its value, or None if there is no such `fit` (another training loop) or no such variable.
    """
    frame = inspect.currentframe()
    try:
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
                found = frame.f_locals.get(name)
                if found is not None:
                    return found
            frame = frame.f_back
        return None
    finally:
        del frame  # a frame that refers to itself would live until the next collection
