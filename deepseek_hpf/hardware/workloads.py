"""What the probe has a device do: each work in sizes from small to large."""

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from deepseek_hpf.dtypes import format_of
from deepseek_hpf.hardware import throughput
from deepseek_hpf.timing import Work

Size = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """One kind of work.

    Args:
        name: The figure it gives.
        sizes: From small to large; a CPU begins at the first, an accelerator at the third.
        amount: FLOPs, or bytes read and written, of a dtype and a size.
        prepare: Makes the work of a dtype and a size, on the current device.
    """

    name: throughput.Work
    sizes: tuple[Size, ...]
    amount: Callable[[str, Size], float]
    prepare: Callable[[str, Size], Work]


def _matmul(dtype: str, size: Size) -> Work:
    inputs = [_random(size * 2, dtype) for _ in range(2)]
    return _running(keras.ops.matmul, inputs, with_gradients=True)


def _convolution(dtype: str, size: Size) -> Work:
    rows, side, channels = size
    channels_last = keras.config.image_data_format() == "channels_last"
    image = (side, side, channels) if channels_last else (channels, side, side)
    inputs = [_random((rows, *image), dtype), _random((3, 3, channels, channels), dtype)]
    return _running(lambda x, k: keras.ops.conv(x, k, padding="same"), inputs, with_gradients=True)


def _cast(dtype: str, size: Size) -> Work:
    wide = _random(size, "float32")
    narrow = keras.ops.cast(wide, dtype)
    # Two functions: a compiler may leave out a conversion that is undone at once.
    there = _running(lambda x: keras.ops.cast(x, dtype), [wide], with_gradients=False)
    back = _running(lambda x: keras.ops.cast(x, "float32"), [narrow], with_gradients=False)

    def work() -> None:
        there()
        back()

    return work


def _copy(dtype: str, size: Size) -> Work:
    # A plain copy may hand on the same memory; two halves joined have to be moved.
    halves = [_random((size[0] // 2,), dtype) for _ in range(2)]
    return _running(lambda x, y: keras.ops.concatenate([x, y]), halves, with_gradients=False)


def _size_in_bytes(dtype: str) -> int:
    return format_of(dtype).bits // 8


_ELEMENTS: tuple[Size, ...] = ((2**18,), (2**20,), (2**22,), (2**24,), (2**27,))
WORKLOADS = (
    Workload(
        "matmul",
        ((128,), (256,), (512,), (1024,), (2048,), (4096,)),
        # The product and two gradients, each a product of the same size.
        lambda dtype, size: 3 * 2 * size[0] ** 3,
        _matmul,
    ),
    Workload(
        "convolution",
        ((1, 14, 32), (2, 28, 32), (8, 28, 64), (32, 28, 64), (32, 56, 128), (128, 56, 128)),
        lambda dtype, size: 3 * 2 * 9 * size[0] * size[1] ** 2 * size[2] ** 2,
        _convolution,
    ),
    Workload(
        "cast",
        _ELEMENTS,
        lambda dtype, size: 2 * size[0] * (4 + _size_in_bytes(dtype)),
        _cast,
    ),
    Workload("copy", _ELEMENTS, lambda dtype, size: 2 * size[0] * _size_in_bytes(dtype), _copy),
)


def _random(shape: Size, dtype: str) -> Any:
    """Normal numbers: zeros and subnormals have speeds of their own."""
    # One block, repeated: drawing all of them would take longer than what is measured.
    block = np.random.default_rng(0).standard_normal(2**16, "float32")
    tensor = keras.ops.convert_to_tensor(np.resize(block, math.prod(shape)).reshape(shape))
    tensor = keras.ops.cast(tensor, dtype)
    made = keras.backend.standardize_dtype(tensor.dtype)
    if made != dtype:
        raise TypeError(f"the back end made it {made}")
    return tensor


def _running(function: Callable[..., Any], inputs: Sequence[Any], *, with_gradients: bool) -> Work:
    name = f"deepseek_hpf.hardware.running_{keras.backend.backend()}"
    work: Work = importlib.import_module(name).running(
        function, inputs, with_gradients=with_gradients
    )
    return work
