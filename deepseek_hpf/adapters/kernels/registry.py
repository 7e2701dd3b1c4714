"""The kernels of the back end at hand, by class of layer."""

import keras

from deepseek_hpf.adapters.kernels.kernel import Kernel


def kernels_for(layer: keras.Layer) -> list[Kernel]:
    """Lists the kernels that have something to do with a layer, the most rewarding first.

    Only the exact class counts: a subclass may compute something else.

    Args:
        layer: A built layer with its final policy.

    Returns:
        The kernels, whether they refuse the layer or not; empty on back ends without kernels.

    Example:
        >>> import keras
        >>> from deepseek_hpf.adapters.kernels.registry import kernels_for
        >>> kernels_for(keras.layers.Dropout(0.5))
        []
    """
    return [kernel for kernel in _candidates(layer).values() if kernel.applies(layer)]


def choose_kernel(layer: keras.Layer) -> tuple[Kernel | None, str | None]:
    """Finds the kernel for a layer.

    Args:
        layer: A built layer with its final policy.

    Returns:
        The first kernel that does not refuse, and None; or None and the first refusal, with the
        name of the kernel; or None twice where no kernel has anything to do with the layer.
    """
    refusal = None
    for kernel in kernels_for(layer):
        reason = kernel.refuses(layer)
        if reason is None:
            return kernel, None
        refusal = refusal or f"{kernel.name}: {reason}"
    return None, refusal


def _candidates(layer: keras.Layer) -> dict[str, Kernel]:
    if keras.backend.backend() == "tensorflow":
        from deepseek_hpf.adapters.kernels import candidates_tensorflow

        return candidates_tensorflow.candidates(layer)
    return {}
