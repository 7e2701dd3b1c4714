"""Bilinear enlargement in NumPy: the same numbers under every back end."""

import numpy as np
from numpy.typing import NDArray


def enlarge(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Enlarges square images bilinearly, with half-pixel centres and the edges repeated.

    Each axis is one product with a matrix of weights, `W x Wᵀ`.

    Args:
        images: `(count, side, side, channels)`, float32.
        size: The new side in pixels.

    Returns:
        `(count, size, size, channels)`, float32; the same array if the side is `size` already.

    Example:
        >>> import numpy as np
        >>> small = np.array([0.0, 1.0, 0.0, 1.0], "float32").reshape(1, 2, 2, 1)
        >>> enlarge(small, 4)[0, 0, :, 0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    side = images.shape[1]
    if side == size:
        return images
    weights = _bilinear_weights(side, size)
    rows = np.einsum("oi,nijc->nojc", weights, images)
    return np.ascontiguousarray(np.einsum("oj,nijc->nioc", weights, rows))


def _bilinear_weights(side: int, size: int) -> NDArray[np.float32]:
    """Returns `(size, side)`: how much each old pixel counts for each new one; rows sum to 1."""
    centres = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    distances = np.abs(centres[:, None] - np.arange(side)[None, :])
    return np.maximum(0.0, 1.0 - distances).astype(np.float32)
