"""How far a precision moves the loss and the gradients of a training step."""

import importlib
import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from deepseek_hpf.tuning.training_step import Batch


@dataclass(frozen=True)
class StepValues:
    """Loss and gradients of one step on one batch.

    Args:
        loss: The loss, without loss scale.
        gradients: One for each trainable variable, without loss scale, float32; None where there
            is none.
    """

    loss: float
    gradients: tuple[np.ndarray | None, ...]

    def deviation(self, reference: "StepValues") -> "Deviation":
        """How far these values are from others.

        Args:
            reference: The values that count as exact.

        Returns:
            The relative errors.

        Example:
            >>> import numpy as np
            >>> from deepseek_hpf.tuning.numerical_error import StepValues
            >>> exact = StepValues(2.0, (np.array([3.0, 4.0]), None))
            >>> StepValues(2.1, (np.array([3.0, 4.5]), None)).deviation(exact).gradients
            0.1
        """
        difference = length = 0.0
        for ours, theirs in zip(self.gradients, reference.gradients, strict=True):
            if theirs is None or ours is None:
                continue
            exact = theirs.astype("float64")
            difference += float(np.sum((ours.astype("float64") - exact) ** 2))
            length += float(np.sum(exact**2))
        return Deviation(
            loss=_relative(abs(self.loss - reference.loss), abs(reference.loss)),
            gradients=_relative(math.sqrt(difference), math.sqrt(length)),
        )


@dataclass(frozen=True)
class Deviation:
    """Relative errors of a step: what a precision does to it.

    The loss's says whether the step is still the same computation. The gradients' is shown and not
    judged by: at random weights the gradients of a deep network with batch normalization are
    chaotic. Those of a ResNet-50 in bfloat16 are 1.3 of their length away from float32's, and it
    trains as well.

    Args:
        loss: Of the loss; inf where it is not finite.
        gradients: Of all gradients as one vector, by Euclidean norms; inf where one is not finite.
    """

    loss: float
    gradients: float

    @property
    def is_finite(self) -> bool:
        """Whether the step could be trained on."""
        return math.isfinite(self.loss) and math.isfinite(self.gradients)


def step_values(model: keras.Model, batch: Batch) -> StepValues:
    """Takes loss and gradients of a model as it is.

    Args:
        model: A compiled model with its optimizer built. Layers may write their state.
        batch: What it is trained on, as tensors.

    Returns:
        The values.
    """
    module = importlib.import_module(f"deepseek_hpf.tuning.gradients_{keras.backend.backend()}")
    loss, gradients = module.loss_and_gradients(model, *batch)
    scale = float(keras.ops.convert_to_numpy(model.optimizer.scale_loss(1.0)))
    return StepValues(float(_host(loss)), tuple(_unscaled(g, scale) for g in gradients))


def _unscaled(gradient: Any, scale: float) -> np.ndarray | None:
    return None if gradient is None else _host(gradient) / np.float32(scale)


def _host(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))


def _relative(difference: float, size: float) -> float:
    if difference == 0.0:
        return 0.0
    ratio = difference / size if size else math.inf
    return ratio if math.isfinite(ratio) else math.inf
