"""Floating-point operations of one operation, from the shapes of what it reads and writes."""

import math

from deepseek_hpf.profiler.census_operations import Array

Shape = tuple[int, ...]


def product_flops(result: Shape, contracted: int) -> float:
    """FLOPs of a matrix product: a multiplication and an addition for each term of each sum.

        2 · elements of the result · terms of each sum

    Args:
        result: Shape of the result, batch dimensions included.
        contracted: Product of the contracted dimensions.

    Example:
        >>> product_flops((16, 10), 100)
        32000.0
    """
    return 2.0 * math.prod(result) * contracted


def convolution_flops(outputs: int, kernel: Shape, output_channels: int) -> float:
    """FLOPs of a convolution, and of either of its gradients, which are as many.

        2 · elements of the output · (kernel window · input channels of a group)

    Terms that fall on the padding are counted, as the usual figures for models do.

    Args:
        outputs: Elements of the forward output.
        kernel: Shape of the kernel, in any order.
        output_channels: That dimension of the kernel that is the output's channels.

    Example:
        >>> convolution_flops(1 * 28 * 28 * 8, (3, 3, 4, 8), 8)
        451584.0
    """
    return 2.0 * outputs * (math.prod(kernel) / max(output_channels, 1))


def elementwise_flops(inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> float:
    """FLOPs of an operation that is no product: one an element of its largest array.

    Args:
        inputs: What it reads.
        outputs: What it writes.

    Example:
        >>> elementwise_flops((Array("float32", (4, 5)),), (Array("float32", (4,)),))
        20.0
    """
    floats = [array.elements for array in (*inputs, *outputs) if array.is_floating]
    return float(max(floats, default=0))
