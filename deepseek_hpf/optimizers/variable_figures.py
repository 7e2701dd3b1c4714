"""Figures of single variables: gradient norm, underflow, update, what is lost in rounding."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from deepseek_hpf.dtypes import FORMATS
from deepseek_hpf.optimizers import finite

Tensor = Any
Shape = tuple[int, ...]

# Updates are measured at no more numbers of a variable than this: a copy of all weights, as the
# whole update would need, costs more than the update.
SAMPLE = 2**12
# Variables of one shape are measured together, up to this size: a graph of some operations for each
# of hundreds of variables takes seconds to trace, but stacking the large ones takes memory.
TOGETHER = 2**16


class Groups:
    """Which variables are measured together.

    Args:
        tensors: Gradient and variable, of each.
    """

    def __init__(self, tensors: Sequence[tuple[Tensor, keras.Variable]]):
        by_kind: dict[Any, list[int]] = {}
        for i, (gradient, variable) in enumerate(tensors):
            dtypes = [keras.backend.standardize_dtype(t.dtype) for t in (gradient, variable)]
            alone = i if math.prod(variable.shape) > TOGETHER else None
            by_kind.setdefault((tuple(variable.shape), *dtypes, alone), []).append(i)
        self.members = list(by_kind.values())
        self.shapes: list[Shape] = [kind[0] for kind in by_kind]
        self.order = [i for members in self.members for i in members]

    def stacked(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Makes a matrix of each group, a row for each of its tensors."""
        matrices = []
        for members, shape in zip(self.members, self.shapes, strict=True):
            own = [_dense(tensors[i], shape) for i in members]
            matrix = own[0] if len(own) == 1 else ops.stack(own)
            matrices.append(ops.reshape(matrix, (len(own), math.prod(shape))))
        return matrices

    def joined(self, figures: Sequence[Tensor]) -> Tensor:
        """Joins a vector of each group, in the order of the groups."""
        return ops.concatenate(list(figures)) if len(figures) > 1 else figures[0]

    def split(self, figures: Tensor) -> list[Tensor]:
        """Takes apart what `joined` returned."""
        ends = list(itertools.accumulate(len(members) for members in self.members))
        return list(ops.split(figures, ends[:-1])) if len(ends) > 1 else [figures]

    def in_order(self, figures: Tensor) -> Tensor:
        """Puts what `joined` returned, or columns of it, in the order of the variables."""
        if self.order == sorted(self.order):
            return figures
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        return ops.take(figures, ops.convert_to_tensor(places, "int32"), axis=0)


def of_gradients(
    tensors: Sequence[tuple[Tensor, keras.Variable]], dtypes: Sequence[str], scale: Tensor | None
) -> list[Tensor]:
    """Measures gradients.

    Args:
        tensors: Gradient of the scaled loss, finite, and variable, of each.
        dtypes: What the layer of each computes in.
        scale: The loss scale; None without scaling.

    Returns:
        One float32 tensor: for each gradient its unscaled norm, the share of its numbers that are
        below the smallest normal number of the dtype, zeros included, and its largest unscaled
        magnitude.
    """
    gradients = [gradient for gradient, _ in tensors]
    groups, wide = Groups(tensors), finite.widest(gradients)
    matrices = [ops.cast(matrix, wide) for matrix in groups.stacked(gradients)]
    largest, small = [], []
    for matrix, members in zip(matrices, groups.members, strict=True):
        magnitudes = ops.abs(matrix)
        largest.append(_maxima(magnitudes))
        limits = [[FORMATS[dtypes[i]].smallest_normal] for i in members]
        below = ops.less(magnitudes, ops.convert_to_tensor(limits, wide))
        small.append(ops.sum(ops.cast(below, "float32"), axis=1))
    maxima = groups.joined(largest)
    divisors = _divisors(maxima)
    parts = zip(matrices, groups.split(divisors), strict=True)
    squares = [_squares(matrix, own) for matrix, own in parts]
    norms = ops.multiply(ops.sqrt(groups.joined(squares)), divisors)
    if scale is not None:
        divisor = ops.cast(scale, wide)
        norms, maxima = ops.divide(norms, divisor), ops.divide(maxima, divisor)
    elements = [float(max(math.prod(tensors[i][1].shape), 1)) for i in groups.order]
    shares = ops.divide(groups.joined(small), ops.convert_to_tensor(elements, "float32"))
    return [groups.in_order(ops.stack([_float32(norms), shares, _float32(maxima)], axis=1))]


def of_updates(
    tensors: Sequence[tuple[Tensor, keras.Variable]], before: Tensor, pulls: Tensor
) -> list[Tensor]:
    """Measures updates, at the numbers that `samples` takes.

    Args:
        tensors: Gradient and variable after the update, of each.
        before: What `samples` took of the variables before the update.
        pulls: What `pulled` said of what the update goes by.

    Returns:
        One float32 tensor: for each variable the norm of the update, the norm of the weights
        before, and the share of the weights that are pulled and have not moved.
    """
    groups = Groups(tensors)
    after = samples(groups, [ops.convert_to_tensor(variable) for _, variable in tensors])
    shapes = [tensors[i][1].shape for i in groups.order]
    sizes = [math.prod(shape) / max(sample_size(shape), 1) for shape in shapes]
    factors = ops.convert_to_tensor([math.sqrt(size) for size in sizes], after.dtype)
    norms = [
        _float32(ops.multiply(_norms(value), factors))
        for value in (ops.subtract(after, before), before)
    ]
    stuck = ops.multiply(pulls, ops.cast(ops.equal(after, before), "float32"))
    counts = [ops.sum(values, axis=1) for values in (stuck, pulls)]
    lost = ops.divide(counts[0], ops.maximum(counts[1], 1.0))
    return [groups.in_order(ops.stack([*norms, lost], axis=1))]


def pulled(groups: Groups, tensors: Sequence[Tensor]) -> Tensor:
    """Says which weights an update is to move, at the numbers that `samples` takes.

    Args:
        groups: The groups.
        tensors: What the update goes by: gradients, or their sums where they are accumulated.

    Returns:
        Float32, 1 where that is not 0 and else 0, of the shape of `samples`.
    """
    return ops.cast(ops.not_equal(samples(groups, tensors), 0.0), "float32")


def nonfinite(tensors: Sequence[tuple[Tensor, keras.Variable]]) -> Tensor:
    """Returns how many numbers of each gradient are inf or NaN, float32."""
    groups = Groups(tensors)
    counts = [
        ops.sum(ops.cast(ops.logical_not(ops.isfinite(matrix)), "float32"), axis=1)
        for matrix in groups.stacked([gradient for gradient, _ in tensors])
    ]
    return groups.in_order(groups.joined(counts))


def samples(groups: Groups, tensors: Sequence[Tensor]) -> Tensor:
    """Copies some numbers of each tensor, for one shape always the same ones.

    Args:
        groups: The groups.
        tensors: Dense tensors.

    Returns:
        Of the shape and dtype that `samples_spec` says: a row each, in the order of the groups,
        filled up with zeros.
    """
    (_, width), dtype = samples_spec(groups, tensors)
    rows: list[Tensor] = []
    for matrix, shape in zip(groups.stacked(tensors), groups.shapes, strict=True):
        stride, gap = _stride(shape), width - sample_size(shape)
        taken = ops.cast(matrix if stride == 1 else matrix[:, ::stride], dtype)
        rows.append(ops.pad(taken, ((0, 0), (0, gap))) if gap else taken)
    # PyTorch updates in place what a view would go on showing.
    return ops.concatenate(rows) if len(rows) > 1 else ops.copy(rows[0])


def samples_spec(groups: Groups, tensors: Sequence[Any]) -> tuple[Shape, str]:
    """Returns shape and dtype of what `samples` returns."""
    width = max(sample_size(shape) for shape in groups.shapes)
    return (len(groups.order), max(width, 1)), finite.widest(tensors)


def sample_size(shape: Sequence[int]) -> int:
    """Returns how many numbers `samples` takes of a tensor of this shape."""
    return -(-math.prod(shape) // _stride(shape))


def spread(rows: Sequence[int], values: Tensor, count: int) -> Tensor:
    """Puts rows where they belong in a tensor of `count` rows; the others are 0."""
    if list(rows) == list(range(count)):
        return values
    shape = (count, *values.shape[1:])
    return ops.scatter(ops.reshape(ops.convert_to_tensor(rows, "int32"), (-1, 1)), values, shape)


def when(
    condition: Tensor, measure: Callable[[], list[Tensor]], results: Sequence[tuple[Shape, str]]
) -> list[Tensor]:
    """Measures under a condition, decided on the device.

    Args:
        condition: Boolean scalar.
        measure: What to run.
        results: Shape and dtype of each tensor that it returns.

    Returns:
        What it returns, or zeros.
    """
    return list(ops.cond(condition, measure, lambda: [ops.zeros(*result) for result in results]))


def _stride(shape: Sequence[int]) -> int:
    """Step between sampled numbers; it shares no factor with the rows, and so meets all columns."""
    stride = max(-(-math.prod(shape) // SAMPLE), 1)
    while stride > 1 and math.gcd(stride, shape[-1]) > 1:
        stride += 1
    return stride


def _dense(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """A plain tensor of known shape; TensorFlow knows that of an embedding's only as it runs."""
    tensor = finite.dense(gradient)
    return tensor if tuple(tensor.shape) == tuple(shape) else ops.reshape(tensor, shape)


def _norms(rows: Tensor) -> Tensor:
    """L2 norms of the rows, whose squares neither overflow nor underflow."""
    divisors = _divisors(_maxima(ops.abs(rows)))
    return ops.multiply(ops.sqrt(_squares(rows, divisors)), divisors)


def _squares(rows: Tensor, divisors: Tensor) -> Tensor:
    """Sums of the squares of the rows, divided by a number each."""
    return ops.sum(ops.square(ops.divide(rows, ops.expand_dims(divisors, 1))), axis=1)


def _divisors(largest: Tensor) -> Tensor:
    # XLA divides by multiplying with the reciprocal, which has to be a normal number.
    return ops.clip(largest, 2.0**-100, 2.0**100)


def _maxima(magnitudes: Tensor) -> Tensor:
    """Largest number of each row; 0 of none."""
    empty = magnitudes.shape[1] == 0
    return (
        ops.zeros(magnitudes.shape[:1], magnitudes.dtype) if empty else ops.max(magnitudes, axis=1)
    )


def _float32(values: Tensor) -> Tensor:
    return ops.cast(ops.minimum(values, finite.FLOAT32_MAX), "float32")
