"""Max pooling that keeps, of each window, the place of its largest value, in 1 to 8 bits."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from deepseek_hpf.storage.packed_tensors_tensorflow import compiled, pack_numbers
from deepseek_hpf.storage.stored_call import Call

CLASSES = (keras.layers.MaxPooling1D, keras.layers.MaxPooling2D, keras.layers.MaxPooling3D)
_MOST = 256  # places in a window that a byte tells apart


@dataclass(frozen=True)
class Windows:
    """The windows of a pooling over the spatial axes of a tensor.

    Args:
        sizes: Of the input along these axes.
        pool: Of a window.
        strides: From one window to the next.
        is_padded: Whether the last windows reach beyond the input, and the first.
        first_axis: The first spatial axis.
        rank: Of the input.
    """

    sizes: tuple[int, ...]
    pool: tuple[int, ...]
    strides: tuple[int, ...]
    is_padded: bool
    first_axis: int
    rank: int

    @classmethod
    def of(cls, layer: keras.Layer, x: tf.Tensor) -> "Windows | None":
        """The windows of a layer; None where the sizes of its input are not known."""
        first = 1 if layer.data_format == "channels_last" else 2
        sizes = tuple(x.shape[first : first + len(layer.pool_size)])
        if None in sizes:
            return None
        padded = layer.padding == "same"
        return cls(sizes, tuple(layer.pool_size), tuple(layer.strides), padded, first, x.shape.rank)

    @property
    def places(self) -> int:
        """Values in a window."""
        return math.prod(self.pool)

    @property
    def overlap(self) -> bool:
        """Whether a value may be in two windows."""
        return any(step < size for step, size in zip(self.strides, self.pool, strict=True))

    def paddings(self) -> list[tuple[int, int]]:
        """How far the windows reach beyond the input, before and behind it; negative if less."""
        found = []
        for size, pool, step in zip(self.sizes, self.pool, self.strides, strict=True):
            count = -(-size // step) if self.is_padded else (size - pool) // step + 1
            beyond = (count - 1) * step + pool - size
            before = max(beyond, 0) // 2 if self.is_padded else 0
            found.append((before, beyond - before))
        return found

    def slices(self) -> Iterator[tuple[slice, ...]]:
        """For each place in a window, where its values are in the padded input."""
        counts = [
            (size + sum(beyond) - pool) // step
            for size, beyond, pool, step in zip(
                self.sizes, self.paddings(), self.pool, self.strides, strict=True
            )
        ]
        whole = [slice(None)] * self.rank
        for place in itertools.product(*map(range, self.pool)):
            axes = [
                slice(start, start + count * step + 1, step)
                for start, count, step in zip(place, counts, self.strides, strict=True)
            ]
            end = self.first_axis + len(axes)
            yield (*whole[: self.first_axis], *axes, *whole[end:])


def wrap(layer: keras.Layer, call: Call, is_exact: bool) -> Call:
    """A max pooling that keeps places.

    Args:
        layer: Of one of `CLASSES`.
        call: Its present `call`.
        is_exact: Whether gradients have to be the same to the bit. Where windows overlap,
            TensorFlow adds them up in another order, and in 16 bits where they have no more.

    Returns:
        The wrapper; where it does not apply, the call.
    """

    @functools.wraps(call)
    def pooling_call(inputs: Any) -> Any:
        x = tf.convert_to_tensor(inputs)
        bits = bits_of_places(layer, x, is_exact)
        windows = Windows.of(layer, x)
        if bits is None or windows is None:
            return call(inputs)
        return _pooled(windows, bits, call, x)

    return pooling_call


def bits_of_places(layer: keras.Layer, x: tf.Tensor, is_exact: bool) -> int | None:
    """What a pooling keeps for each of its results.

    Args:
        layer: As for `wrap`.
        x: Its input.
        is_exact: As for `wrap`.

    Returns:
        Bits; None where the wrapper does not apply.
    """
    windows = Windows.of(layer, x)
    if windows is None or windows.places > _MOST or (is_exact and windows.overlap):
        return None
    return next(bits for bits in (1, 2, 4, 8) if 2**bits >= windows.places)


def _pooled(windows: Windows, bits: int, call: Call, x: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def pool(x: tf.Tensor) -> Any:
        y = call(x)
        # With the graph of the forward pass; where no gradient is asked for, it is not computed.
        places = pack_numbers(compiled(_places, windows)(x, y), bits)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            dx = compiled(_spread, windows)(places.restore(upstream), upstream)
            return tf.ensure_shape(dx, x.shape)

        return y, gradient

    result: tf.Tensor = pool(x)
    return result


def _places(windows: Windows, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """The first place of each window that holds its largest value."""
    covered = _resized(windows, x, x.dtype.min)
    found = tf.zeros_like(y, tf.uint8)
    for number, slices in reversed(list(enumerate(windows.slices()))):
        value = covered[slices]
        is_it = (value == y) | (tf.math.is_nan(value) & tf.math.is_nan(y))
        found = tf.where(is_it, tf.constant(number, tf.uint8), found)
    return found


def _spread(windows: Windows, places: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """The gradients at their places, added up in float32."""
    wide = tf.cast(upstream, tf.float64 if upstream.dtype == tf.float64 else tf.float32)
    sizes = [size + sum(pair) for size, pair in zip(windows.sizes, windows.paddings(), strict=True)]
    first, end = windows.first_axis, windows.first_axis + len(sizes)
    shape = tf.concat([tf.shape(wide)[:first], sizes, tf.shape(wide)[end:]], 0)
    total: Any = 0.0
    for number, slices in reversed(list(enumerate(windows.slices()))):
        part = tf.where(places == tf.constant(number, tf.uint8), wide, 0.0)
        total += tf.raw_ops.StridedSliceGrad(
            shape=shape,
            begin=[each.start or 0 for each in slices],
            end=[each.stop or 0 for each in slices],
            strides=[each.step or 1 for each in slices],
            dy=part,
            begin_mask=sum(1 << axis for axis, each in enumerate(slices) if each.start is None),
            end_mask=sum(1 << axis for axis, each in enumerate(slices) if each.stop is None),
        )
    return tf.cast(_resized(windows, total, 0.0, back=True), upstream.dtype)


def _resized(windows: Windows, x: tf.Tensor, value: Any, back: bool = False) -> tf.Tensor:
    """From the sizes of the input to what the windows cover, or back."""
    paddings = [(0, 0)] * windows.rank
    place = windows.first_axis
    sign = -1 if back else 1
    for pair in windows.paddings():
        paddings[place] = (sign * pair[0], sign * pair[1])
        place += 1
    cut = tuple(slice(max(-before, 0), min(behind, 0) or None) for before, behind in paddings)
    filled = [[max(before, 0), max(behind, 0)] for before, behind in paddings]
    return tf.pad(x[cut], filled, constant_values=tf.cast(value, x.dtype))
