"""`Kernel`: a faster way to compute what one class of layers computes."""

from collections.abc import Callable
from dataclasses import dataclass

import keras

from deepseek_hpf.adapters.call_hooks import Call


def _always(layer: keras.Layer) -> bool:
    return True


@dataclass(frozen=True)
class Kernel:
    """A replacement for the `call` of layers of one class.

    What it computes is what the layer computes, up to rounding. It reads the layer's attributes
    when it is called, and hands anything that it does not know to the `call` it replaces.

    Args:
        name: What the report calls it, e.g. "batch normalization".
        refuses: Of a built layer that has its final policy: why the kernel is not for it, in words
            that follow "because"; None where it is.
        wrap: Of a layer and its present `call`: the new `call`.
        applies: Whether the kernel has anything to do with a layer. Where it has not, the report
            says nothing; where it has and refuses, it gives the reason.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.kernels.kernel import Kernel
        >>> kernel = Kernel("identity", lambda layer: None, lambda layer, call: call)
        >>> kernel.applies(keras.layers.Dense(2))
        True
    """

    name: str
    refuses: Callable[[keras.Layer], str | None]
    wrap: Callable[[keras.Layer, Call], Call]
    applies: Callable[[keras.Layer], bool] = _always
